"""Non-maximum suppression.

A pair is first asked a question without a division: IoU > t needs inter > t / (1 + t) * (area1 + area2). The factor is
taken a little smaller than that, so that rounding can only let pairs through, and these few get the exact IoU of the
contract. Two ways lead through the boxes, best first:

- Few boxes: in blocks. Those of a block that are kept are held against all boxes that are still alive, in vector code,
  and the survivors move together.
- Many: a grid of kept boxes. Boxes with an IoU over t are alike in size and their centers are near, so a kept box is
  entered in the (at most four) cells in which the center of a box that it can suppress may lie, on a level with cells
  as large as that needs. A box then asks its own cell, on the levels of boxes of like size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.backends import SOFT_NMS_METHODS, Bool, Float, Int
from fastssd.backends.numba._jit import jit
from fastssd.backends.numba._math import bits_of, exp, falling_keys, ordered, round_down
from fastssd.backends.numba._sort import sort_by
from fastssd.backends.numba.boxes import area_of
from fastssd.backends.numba.iou import overlap, ratio

Places = NDArray[np.int32]
Bits = NDArray[Any]  # signed integers as wide as the floats

BLOCK, TILE = 64, 256
FEW = 256  # from here on the grid is faster
LEAST_THRESHOLD = 0.1  # under it boxes far apart and of any size suppress each other, and there is nothing to prune
WORK = 1 << 25  # so many pairs take some 10 ms; in between Python sees Ctrl-C, which a kernel does not


# --- in order --------------------------------------------------------------------------------------------------------


@jit
def _by_score(boxes: Float, scores: Float) -> Places:
    """Indices of the boxes that take part, best first."""
    flat, zero = boxes.reshape(-1), boxes.dtype.type(0)
    order, usable, found = np.empty(len(boxes), np.int32), np.empty(len(boxes), scores.dtype), 0
    for i in range(len(boxes)):
        area = area_of(flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3], zero)
        order[found], usable[found] = i, scores[i]  # overwritten by the next one unless it counts
        found += (area == area) & (scores[i] == scores[i])
    return sort_by(falling_keys(usable[:found]), order[:found])


@jit
def _by_group(idxs: Int, order: Places) -> tuple[Places, Int]:
    """Ranks sorted by group, best first within each, and where each group begins (one more: where the last ends)."""
    n = len(order)
    groups = np.empty(n, np.uint64)
    for rank in range(n):
        groups[rank] = np.uint64(idxs[order[rank]]) ^ np.uint64(1 << 63)
    ranks = sort_by(groups, np.arange(n).astype(np.int32))
    starts, found = np.empty(n + 1, np.int64), 0
    for i in range(n):
        starts[found] = i
        found += i == 0 or idxs[order[ranks[i]]] != idxs[order[ranks[i - 1]]]
    starts[found] = n
    return ranks, starts[: found + 1]


@jit
def _gather(boxes: Float, order: Places, ranks: Places, factor: float) -> Float:
    """Rows x1, y1, x2, y2, area, bound [6, N] of the boxes of these ranks.

    An IoU over the threshold needs an intersection over the sum of the two bounds; `factor` is from `_share`.
    """
    flat, live, zero = boxes.reshape(-1), np.empty((6, len(ranks)), boxes.dtype), boxes.dtype.type(0)
    x1, y1, x2, y2, area, bound = live[0], live[1], live[2], live[3], live[4], live[5]
    scale, tiny = boxes.dtype.type(factor), np.nextafter(zero, boxes.dtype.type(1))
    for i in range(len(ranks)):
        at = 4 * np.int64(order[ranks[i]])
        x1[i], y1[i], x2[i], y2[i] = flat[at], flat[at + 1], flat[at + 2], flat[at + 3]
        area[i] = area_of(x1[i], y1[i], x2[i], y2[i], zero)
        bound[i] = max(scale * area[i] - tiny, zero)  # less a denormal: among those a product can round up by a lot
    return live


@jit
def _collect(order: Places, kept: Bool, keep: Int) -> int:
    found = 0
    for rank in range(len(order)):
        keep[found] = order[rank]
        found += kept[rank]
    return found


# --- few boxes: blocks -----------------------------------------------------------------------------------------------


@jit
def _exceeds(inter: Any, area1: Any, area2: Any, threshold: float, zero: Any) -> bool:
    return np.float64(ratio(inter, area1 + area2 - inter, zero)) > threshold


@jit
def _excess(
    box: Any, name: Any, x1: Float, y1: Float, x2: Float, y2: Float, bound: Float, most: Bits, zero: Any
) -> None:
    """Raise `most` to how far the intersection with the box is over the bound; it stays negative where it is not.

    As integers, with the box's name (under BLOCK) in the low bits: so they tell who suppresses, and a maximum of floats
    would become a masked store, which is slow on some processors.
    """
    ax1, ay1, ax2, ay2, a_bound = box
    kind = most.dtype.type
    for j in range(len(x1)):
        over = overlap(ax1, ay1, ax2, ay2, x1[j], y1[j], x2[j], y2[j], zero) - (a_bound + bound[j])
        most[j] = max(most[j], kind(kind(kind(bits_of(over) - 1) & ~(BLOCK - 1)) | name))


@jit
def _is_suppressed(live: Float, at: int, best: Float, found: int, threshold: float, zero: Any) -> bool:
    """Whether one of the first boxes of `best` suppresses box `at` of `live`."""
    x1, y1, x2, y2, area, bound = live[0, at], live[1, at], live[2, at], live[3, at], live[4, at], live[5, at]
    for k in range(found):
        inter = overlap(best[0, k], best[1, k], best[2, k], best[3, k], x1, y1, x2, y2, zero)
        if inter > best[5, k] + bound and _exceeds(inter, best[4, k], area, threshold, zero):
            return True
    return False


@jit
def _blocks(live: Float, ranks: Places, start: int, count: int, threshold: float, kept: Bool, work: int) -> int:
    """NMS of the boxes [start, start + count), until so many pairs are done.

    Returns how many boxes are left to do; they have moved to `start`.
    """
    zero = live.dtype.type(0)
    x1, y1, x2, y2, area, bound = live[0], live[1], live[2], live[3], live[4], live[5]
    best, dead, most = np.empty((6, BLOCK), live.dtype), np.empty(BLOCK, np.bool_), np.full(TILE, bits_of(zero))
    while count > 0 and work > 0:
        end, middle = start + count, start + min(count, BLOCK)
        found = np.int64(0)  # of a type of its own: a literal would compile every helper once more
        dead[:] = False
        for i in range(start, middle):
            if dead[i - start]:
                continue
            kept[ranks[i]] = True
            for row in range(6):
                best[row, found] = live[row, i]
            most[:BLOCK] = -1
            box = x1[i], y1[i], x2[i], y2[i], bound[i]
            _excess(
                box,
                most.dtype.type(0),
                x1[i:middle],
                y1[i:middle],
                x2[i:middle],
                y2[i:middle],
                bound[i:middle],
                most,
                zero,
            )
            for j in range(i + 1, middle):
                if most[j - i] >= 0 and not dead[j - start]:
                    inter = overlap(x1[i], y1[i], x2[i], y2[i], x1[j], y1[j], x2[j], y2[j], zero)
                    dead[j - start] = _exceeds(inter, area[i], area[j], threshold, zero)
            found += 1

        to = start
        for low in range(middle, end, TILE):
            high = min(low + TILE, end)
            most[:] = -1
            for k in range(found):
                box = best[0, k], best[1, k], best[2, k], best[3, k], best[5, k]
                _excess(
                    box,
                    most.dtype.type(k),
                    x1[low:high],
                    y1[low:high],
                    x2[low:high],
                    y2[low:high],
                    bound[low:high],
                    most,
                    zero,
                )
            for i in range(low, high):
                if most[i - low] >= 0:
                    k = most[i - low] & (BLOCK - 1)
                    inter = overlap(best[0, k], best[1, k], best[2, k], best[3, k], x1[i], y1[i], x2[i], y2[i], zero)
                    if _exceeds(inter, best[4, k], area[i], threshold, zero) or _is_suppressed(
                        live, i, best, found, threshold, zero
                    ):
                        continue
                x1[to], y1[to], x2[to], y2[to], area[to], bound[to] = x1[i], y1[i], x2[i], y2[i], area[i], bound[i]
                ranks[to] = ranks[i]
                to += 1
        work -= found * count
        count = to - start
    return count


@jit
def _small_groups(live: Float, ranks: Places, starts: Int, group: int, few: int, threshold: float, kept: Bool) -> int:
    """NMS of the groups from `group` on, up to one that is not small or until some work is done. Returns the next."""
    work = np.int64(WORK)
    while group < len(starts) - 1 and work > 0:
        count = starts[group + 1] - starts[group]
        if count > few:
            break
        _blocks(live, ranks, starts[group], count, threshold, kept, np.int64(WORK))
        work -= count * count
        group += 1
    return group


# --- many boxes: a grid ----------------------------------------------------------------------------------------------


@jit
def _plan(live: Float, start: int, stop: int, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The levels of the grid, [L, 5] (largest side on it, cells per unit, columns, rows, first cell), and (x, y, reach,
    slack): a box of width w can suppress a box whose center is within reach * w + slack of its own."""
    low_x = low_y = least = np.inf
    high_x = high_y = -np.inf
    for i in range(start, stop):
        area = np.float64(live[4, i])
        if 0 < area < np.inf:
            x1, y1, x2, y2 = (
                np.float64(live[0, i]),
                np.float64(live[1, i]),
                np.float64(live[2, i]),
                np.float64(live[3, i]),
            )
            low_x, low_y, high_x, high_y = min(low_x, x1), min(low_y, y1), max(high_x, x2), max(high_y, y2)
            least = min(least, max(x2 - x1, y2 - y1))
    width, height, count = high_x - low_x, high_y - low_y, stop - start
    # Of two boxes with an IoU over t no side is longer than 1 / t times that of the other, and they share at least t of
    # the longer, b: the centers are at most (a + b) / 2 - t b apart. For a kept side a that is most at b = a / t if
    # t < 1 / 2, else at b = a.
    reach = (1 - threshold) / (2 * threshold) if threshold < 0.5 else 1 - threshold
    reach = (reach + 1e-3) * (1 + 1e-5)
    slack = 1e-15 * max(abs(low_x), abs(low_y), abs(high_x), abs(high_y))
    origin = np.array([low_x, low_y, reach, slack])
    cell = max(
        2.01 * (reach * least + slack), np.sqrt(width) * np.sqrt(height) / np.sqrt(count), width / count, height / count
    )
    levels = np.empty((64, 5))
    found, cells = 0, 0.0
    if not cell < np.inf:  # nothing to put into a grid, or too far apart for numbers
        return levels[:0], origin
    while True:
        columns, rows = np.floor(width / cell) + 1, np.floor(height / cell) + 1
        levels[found, 0] = (0.499 * cell - slack) / reach  # less than half, so that rounding cannot make it three cells
        levels[found, 1], levels[found, 2], levels[found, 3], levels[found, 4] = 1 / cell, columns, rows, cells
        cells += columns * rows
        found += 1
        if columns * rows == 1:
            levels[found - 1, 0] = np.inf
            return levels[:found], origin
        cell *= 2


@jit
def _level(levels: NDArray[np.float64], side: float) -> int:
    """The level of boxes whose longer side is this."""
    level = 0
    while side > levels[level, 0]:
        level += 1
    return level


@jit
def _cell(center: float, low: float, per_unit: float, cells: float) -> int:
    return np.int64(min(max((center - low) * per_unit, 0.0), cells - 1))


@jit
def _through_grid(
    live: Float,
    ranks: Places,
    at: int,
    stop: int,
    threshold: float,
    levels: NDArray[np.float64],
    origin: NDArray[np.float64],
    heads: Places,
    nodes: NDArray[Any],
    corners: Float,
    used: int,
    kept: Bool,
) -> tuple[int, int]:
    """NMS of the boxes [at, stop), until some work is done. Returns the box to go on with and the number of nodes used.

    A node is an entry of a kept box in a cell: its corners and bound, seen as floats in `corners`, and in nodes[:, 5]
    the next node of the cell.
    """
    zero = live.dtype.type(0)
    low_x, low_y, reach, slack = origin[0], origin[1], origin[2], origin[3]
    work = WORK // 8
    while at < stop and work > 0:
        x1, y1, x2, y2, area, bound = live[0, at], live[1, at], live[2, at], live[3, at], live[4, at], live[5, at]
        work -= 1
        if not (area > zero and area < np.inf):  # its IoU with any other box is 0
            kept[ranks[at]] = True
            at += 1
            continue
        width, height = np.float64(x2) - np.float64(x1), np.float64(y2) - np.float64(y1)
        cx, cy = 0.5 * (np.float64(x1) + np.float64(x2)), 0.5 * (np.float64(y1) + np.float64(y2))
        side, suppressed = max(width, height), False
        level, highest = _level(levels, side * threshold * (1 - 1e-5)), _level(levels, side / threshold * (1 + 1e-5))
        while level <= highest and not suppressed:
            column = _cell(cx, low_x, levels[level, 1], levels[level, 2])
            row = _cell(cy, low_y, levels[level, 1], levels[level, 3])
            node = np.int64(heads[np.int64(levels[level, 4]) + row * np.int64(levels[level, 2]) + column])
            while node >= 0:
                work -= 1
                bx1, by1, bx2, by2 = corners[node, 0], corners[node, 1], corners[node, 2], corners[node, 3]
                inter = overlap(x1, y1, x2, y2, bx1, by1, bx2, by2, zero)
                if inter > bound + corners[node, 4] and _exceeds(
                    inter, area_of(bx1, by1, bx2, by2, zero), area, threshold, zero
                ):
                    suppressed = True
                    break
                node = np.int64(nodes[node, 5])
            level += 1
        if not suppressed:
            kept[ranks[at]] = True
            level = _level(levels, side)
            per_unit, columns, rows, first = levels[level, 1], levels[level, 2], levels[level, 3], levels[level, 4]
            reach_x, reach_y = reach * width + slack, reach * height + slack
            for row in range(
                _cell(cy - reach_y, low_y, per_unit, rows), _cell(cy + reach_y, low_y, per_unit, rows) + 1
            ):
                for column in range(
                    _cell(cx - reach_x, low_x, per_unit, columns), _cell(cx + reach_x, low_x, per_unit, columns) + 1
                ):
                    cell = np.int64(first) + row * np.int64(columns) + column
                    corners[used, 0], corners[used, 1], corners[used, 2], corners[used, 3] = x1, y1, x2, y2
                    corners[used, 4] = bound
                    nodes[used, 5] = heads[cell]
                    heads[cell] = used
                    used += 1
        at += 1
    return at, used


# --- soft NMS --------------------------------------------------------------------------------------------------------


@jit
def _usable(boxes: Float, scores: Float, lowest: Any) -> tuple[Float, Float, Places]:
    """Columns x1, y1, x2, y2, area [5, N], scores and indices of the boxes that take part and score over `lowest`."""
    flat, zero, found = boxes.reshape(-1), boxes.dtype.type(0), 0
    live, current = np.empty((5, len(boxes)), boxes.dtype), np.empty(len(boxes), boxes.dtype)
    index = np.empty(len(boxes), np.int32)
    for i in range(len(boxes)):
        x1, y1, x2, y2 = flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3]
        area = area_of(x1, y1, x2, y2, zero)
        live[0, found], live[1, found], live[2, found], live[3, found], live[4, found] = x1, y1, x2, y2, area
        current[found], index[found] = scores[i], i
        found += (area == area) & (scores[i] > lowest)
    return live, current[:found], index


@jit
def _lowered(score: Any, decay: Any, lowest: Any, gone: Any) -> Any:
    score = score * decay
    return score if score > lowest else gone


@jit
def _decay(
    box: Any, x1: Float, y1: Float, x2: Float, y2: Float, area: Float, linear: bool, limits: Any, current: Float
) -> Any:
    """Lower the scores by their IoU with the box, to -inf where they leave. Returns the highest, `ordered`."""
    ax1, ay1, ax2, ay2, a_area = box
    iou_threshold, sigma, lowest = limits
    zero, one, gone = current.dtype.type(0), current.dtype.type(1), current.dtype.type(-np.inf)
    highest = ordered(gone)
    if linear:
        for i in range(len(current)):
            inter = overlap(ax1, ay1, ax2, ay2, x1[i], y1[i], x2[i], y2[i], zero)
            iou = ratio(inter, a_area + area[i] - inter, zero)
            current[i] = _lowered(current[i], one - iou if iou > iou_threshold else one, lowest, gone)
            highest = max(highest, ordered(current[i]))
    else:
        for i in range(len(current)):
            inter = overlap(ax1, ay1, ax2, ay2, x1[i], y1[i], x2[i], y2[i], zero)
            iou = ratio(inter, a_area + area[i] - inter, zero)
            current[i] = _lowered(current[i], exp(-(iou * iou) / sigma), lowest, gone)
            highest = max(highest, ordered(current[i]))
    return highest


@jit
def _soften(
    live: Float, current: Float, index: Places, linear: bool, limits: Any, count: int, keep: Int, kept_scores: Float
) -> tuple[int, int]:
    """Soft NMS of the boxes after the first `count`, until some work is done; a score of -inf marks a box that is gone.

    Returns how many are kept, and how many boxes are left; they have moved to the front.
    """
    gone = current.dtype.type(-np.inf)
    n, work = len(current), np.int64(WORK)
    x1, y1, x2, y2, area = live[0], live[1], live[2], live[3], live[4]
    highest = ordered(gone)
    for i in range(n):
        highest = max(highest, ordered(current[i]))
    steps = 0
    while highest > ordered(gone) and work > 0:
        best = 0
        while ordered(current[best]) != highest:
            best += 1
        keep[count], kept_scores[count] = index[best], current[best]
        count += 1
        current[best] = gone
        box = x1[best], y1[best], x2[best], y2[best], area[best]
        highest = _decay(box, x1[:n], y1[:n], x2[:n], y2[:n], area[:n], linear, limits, current[:n])
        work -= n
        steps += 1
        if steps == 32:  # from time to time those that are left move together
            to = steps = 0
            for i in range(n):
                x1[to], y1[to], x2[to], y2[to], area[to] = x1[i], y1[i], x2[i], y2[i], area[i]
                current[to], index[to] = current[i], index[i]
                to += current[i] > gone
            n = to
    return count, n if highest > ordered(gone) else 0


# --- the operators ---------------------------------------------------------------------------------------------------


def _large_group(live: Float, ranks: Places, start: int, stop: int, threshold: float, kept: Bool) -> None:
    # In a crowd the first blocks fell most boxes, for less than the grid would take. If one does not, few will.
    left, before = stop - start, np.inf
    while FEW < left < before / 2:
        before, left = left, _blocks(live, ranks, start, left, threshold, kept, 1)
    levels, origin = _plan(live, start, start + left, max(threshold, LEAST_THRESHOLD))
    if left <= FEW or threshold < LEAST_THRESHOLD or len(levels) == 0:
        while left:
            left = _blocks(live, ranks, start, left, threshold, kept, WORK)
        return
    stop = start + left
    integer = np.int32 if live.itemsize == 4 else np.int64
    heads = np.full(int(levels[-1, 4]) + 1, -1, np.int32)
    nodes = np.empty((4 * (stop - start), 8), integer)  # the system gives only what is written to
    used, at = 0, start
    while at < stop:
        at, used = _through_grid(
            live, ranks, at, stop, threshold, levels, origin, heads, nodes, nodes.view(live.dtype), used, kept
        )


def _share(iou_threshold: float) -> float:
    """The part of the sum of two areas that their intersection must exceed for an IoU over the threshold."""
    share = iou_threshold / (1 + iou_threshold) * (1 - 1e-5)
    return share if share > 1e-30 else 0.0


def _suppress(boxes: Float, order: Places, ranks: Places, starts: Int, iou_threshold: float, keep: Int) -> int:
    live, kept = _gather(boxes, order, ranks, _share(iou_threshold)), np.zeros(len(order), np.bool_)
    group, few = 0, FEW
    while group < len(starts) - 1:
        if starts[group + 1] - starts[group] > few:
            _large_group(live, ranks, int(starts[group]), int(starts[group + 1]), iou_threshold, kept)
            group += 1
        group = _small_groups(live, ranks, starts, group, few, iou_threshold, kept)
    return _collect(order, kept, keep)


@jit
def _nms_of_few(boxes: Float, scores: Float, iou_threshold: float, share: float, keep: Int) -> int:
    order = _by_score(boxes, scores)
    ranks, kept = np.arange(len(order)).astype(np.int32), np.zeros(len(order), np.bool_)
    live = _gather(boxes, order, ranks, share)
    _blocks(live, ranks, np.int64(0), len(order), iou_threshold, kept, np.int64(WORK))
    return _collect(order, kept, keep)


def nms(boxes: Float, scores: Float, iou_threshold: float, keep: Int) -> int:
    if len(boxes) <= FEW:
        return _nms_of_few(boxes, scores, iou_threshold, _share(iou_threshold), keep)
    order = _by_score(boxes, scores)
    ranks = np.arange(len(order), dtype=np.int32)
    return _suppress(boxes, order, ranks, np.array([0, len(order)]), iou_threshold, keep)


def batched_nms(boxes: Float, scores: Float, idxs: Int, iou_threshold: float, keep: Int) -> int:
    order = _by_score(boxes, scores)
    return _suppress(boxes, order, *_by_group(idxs, order), iou_threshold, keep)


def soft_nms(
    boxes: Float,
    scores: Float,
    method: int,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    keep: Int,
    kept_scores: Float,
) -> int:
    linear, dtype = method == SOFT_NMS_METHODS["linear"], boxes.dtype
    with np.errstate(over="ignore"):
        limits = round_down(iou_threshold, dtype), dtype.type(sigma), round_down(score_threshold, dtype)
    live, current, index = _usable(boxes, scores, limits[2])
    count, left = 0, len(current)
    while left:
        count, left = _soften(live, current[:left], index, linear, limits, count, keep, kept_scores)
    return count
