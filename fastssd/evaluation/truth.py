"""The ground truth of an image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class GroundTruth(NamedTuple):
    """The G objects of one image."""

    boxes: NDArray[np.float32]
    """[G, 4] xyxy, pixels."""
    labels: NDArray[np.int64]
    """[G], 1-based."""
    difficult: NDArray[np.bool_]
    """[G]; whether such a box is found or missed does not count (VOC's ``difficult``, COCO's ``iscrowd``)."""
