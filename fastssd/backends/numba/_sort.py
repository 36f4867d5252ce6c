"""Stable orders by radix sort: least significant digits first, digits that are the same everywhere left out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.backends.numba._interrupt import interrupted
from fastssd.backends.numba._jit import jit

MANY = 1 << 20  # from here on a pass takes long enough to ask for Ctrl-C after it

Keys = NDArray[Any]  # uint32 or uint64


@jit
def _insertion_sort(keys: Keys, order: NDArray[Any]) -> None:
    for i in range(1, len(keys)):
        key, entry, to = keys[i], order[i], i
        while to > 0 and keys[to - 1] > key:
            keys[to], order[to] = keys[to - 1], order[to - 1]
            to -= 1
        keys[to], order[to] = key, entry


@jit
def sort_by(keys: Keys, order: NDArray[Any]) -> NDArray[Any]:
    """The entries of `order` by ascending key, where keys[i] belongs to order[i]. Overwrites both."""
    n = len(keys)
    if n < 64:
        _insertion_sort(keys, order)
        return order
    bits = 8 if n < 1000 else 11
    mask = np.uint64((1 << bits) - 1)
    places = np.empty(1 << bits, np.uint64)
    other_keys, other_order = np.empty_like(keys), np.empty_like(order)
    for low in range(0, 8 * keys.itemsize, bits):
        # Indices are unsigned: Numba then leaves out the code for negative indices.
        shift = np.uint64(low)
        places[:] = 0
        for i in range(n):
            places[np.uint64((np.uint64(keys[i]) >> shift) & mask)] += np.uint64(1)
        if places[np.uint64((np.uint64(keys[0]) >> shift) & mask)] == n:
            continue
        if n > MANY and interrupted():
            break
        start = np.uint64(0)
        for digit in range(len(places)):
            count = places[digit]
            places[digit] = start
            start += count
        for i in range(n):
            digit = np.uint64((np.uint64(keys[i]) >> shift) & mask)
            to = places[digit]
            places[digit] = to + np.uint64(1)
            other_keys[to], other_order[to] = keys[i], order[i]
        keys, other_keys = other_keys, keys
        order, other_order = other_order, order
    return order
