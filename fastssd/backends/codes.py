"""The types of kernels' arguments, and the codes that stand for options in them. C++ has the same (csrc/tasks.h)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[Any]  # float32 or float64; within one call every Float argument has the same dtype
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

# How a ground-truth box claims an anchor that the threshold alone would not give it (docs/contract.md, Matching).
FORCE_MATCH = {"none": 0, "bipartite": 1, "best": 2, "low_quality": 3}
BOX_FORMATS = {"xyxy": 0, "xywh": 1, "cxcywh": 2}
ACTIVATIONS = {"none": 0, "softmax": 1, "sigmoid": 2}
SOFT_NMS_METHODS = {"linear": 0, "gaussian": 1}
