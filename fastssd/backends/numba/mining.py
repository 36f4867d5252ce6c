"""Hard negative mining: which negatives have the k highest losses.

Nothing is sorted. The losses become integers of the same order, and the k-th largest is found by bisection: counting
how many reach a number is the one thing that vector code does at the speed of memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.backends.codes import Bool, Float
from fastssd.backends.numba._interrupt import interrupted
from fastssd.backends.numba._jit import jit
from fastssd.backends.numba._math import ordered

LOSSES = 1 << 22  # so many take some 10 ms; in between Python sees Ctrl-C, which a kernel does not

Keys = NDArray[Any]  # signed integers as wide as the losses


@jit
def _count(keys: Keys, least: Any) -> int:
    """How many keys are at least `least`."""
    count = np.int32(0)
    for i in range(len(keys)):
        count = np.int32(count + np.int32(keys[i] >= least))
    return np.int64(count)


@jit
def kth_largest(keys: Keys, k: int) -> Any:
    """The largest number that at least k >= 1 keys reach."""
    low, high = keys.dtype.type(np.iinfo(keys.dtype).min), keys.dtype.type(np.iinfo(keys.dtype).max)
    while low < high:
        middle = keys.dtype.type((low | high) - ((low ^ high) >> 1))  # their mean rounded up, which cannot overflow
        count = _count(keys, middle)
        if len(keys) > LOSSES and interrupted():
            break
        if count >= k:
            low = middle
        else:
            high = keys.dtype.type(middle - 1)
    return low


@jit
def _mine(loss: Float, positive: Bool, neg_pos_ratio: float, min_negatives: int, keys: Keys, out: Bool) -> None:
    """One image; `keys` [A] is scratch."""
    kind = keys.dtype.type
    never, first = kind(np.iinfo(keys.dtype).min), kind(np.iinfo(keys.dtype).max)
    positives = np.int32(0)
    for i in range(len(loss)):
        key = first if loss[i] != loss[i] else ordered(loss[i])
        keys[i] = never if positive[i] | (loss[i] == -np.inf) else key
        positives = np.int32(positives + np.int32(positive[i]))
    negatives = _count(keys, kind(never + 1))
    asked = min(neg_pos_ratio * positives, float(len(loss))) if positives > 0 else 0.0  # infinity times 0 is NaN
    wanted = max(np.int64(np.ceil(asked)), min_negatives)
    if wanted <= 0:
        out[:] = False
    elif wanted >= negatives:
        for i in range(len(loss)):
            out[i] = keys[i] != never
    else:
        least = kth_largest(keys, wanted)
        if len(keys) > LOSSES and interrupted():
            return
        for i in range(len(loss)):
            out[i] = keys[i] > least
        ties, i = wanted - _count(keys, kind(least + 1)) if least < first else wanted, 0
        while ties > 0:
            if keys[i] == least:
                out[i] = True
                ties -= 1
            i += 1


@jit
def _mine_images(
    loss: Float, positive: Bool, neg_pos_ratio: float, min_negatives: int, keys: Keys, first: int, stop: int, out: Bool
) -> None:
    for image in range(first, stop):
        _mine(loss[image], positive[image], neg_pos_ratio, min_negatives, keys, out[image])


def mine_hard_negatives(loss: Float, positive: Bool, neg_pos_ratio: float, min_negatives: int, out: Bool) -> None:
    images, anchors = loss.shape
    if anchors == 0:  # such images need no memory: there may be any number of them
        return
    keys, step = np.empty(anchors, f"i{loss.itemsize}"), max(1, LOSSES // max(anchors, 1))
    for first in range(0, images, step):
        least = min(min_negatives, anchors)
        _mine_images(loss, positive, neg_pos_ratio, least, keys, first, min(first + step, images), out)
