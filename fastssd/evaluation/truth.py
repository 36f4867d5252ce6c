"""What there is to find."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class GroundTruth(NamedTuple):
    """What there is to find in one picture."""

    boxes: NDArray[np.float32]
    """[G, 4] xyxy, pixels."""
    labels: NDArray[np.int64]
    """[G], 1-based."""
    difficult: NDArray[np.bool_]
    """[G]; found or not, such a box counts neither for nor against (VOC's ``difficult``, COCO's ``iscrowd``)."""
