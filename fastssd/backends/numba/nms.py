"""Non-maximum suppression.

A pair is first asked a question without a division: IoU > t needs inter > t / (1 + t) * (area1 + area2). The factor is
taken a little smaller than that, so that rounding can only let pairs through, and these few get the exact IoU of the
contract. Two ways lead through the boxes, best first:

- Few boxes: in blocks. Those of a block that are kept are compared with all boxes that are still alive, in vector code,
  and the survivors move together.
- Many: a grid of kept boxes. Boxes with an IoU over t are alike in size and their centers are near, so a kept box is
  entered in the (at most four) cells in which the center of a box that it can suppress may lie, on a level with cells
  as large as that needs. A box then asks its own cell, on the levels of boxes of like size. A level goes by the longer
  side, or, where many boxes are thin, by width and height. Cells are places in a hash table, so it does not matter how
  far apart boxes are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.backends.codes import SOFT_NMS_METHODS, Bool, Float, Int
from fastssd.backends.numba._interrupt import WORK, interrupted
from fastssd.backends.numba._jit import jit
from fastssd.backends.numba._math import bits_of, descending_keys, exp, ordered, round_down
from fastssd.backends.numba._sort import sort_by
from fastssd.backends.numba.boxes import area_of
from fastssd.backends.numba.iou import overlap, ratio

Places = NDArray[np.int32]
Bits = NDArray[Any]  # signed integers as wide as the floats

BLOCK, TILE = 64, 256
FEW = 256  # from here on the grid is faster
EXPONENTS = 520  # more than any float has
PER_UNIT = np.ldexp(1.0, -2 * np.arange(-EXPONENTS, EXPONENTS).clip(-440))
FURTHEST = 2.0**62
ERROR = 2.0**-50  # how far off a center may be, as a share of its coordinate
ERRORS_IN_SIDE = 64
SAMPLE, THIN = 256, 16
LEAST_THRESHOLD = 0.1  # under it boxes far apart and of any size suppress each other, and there is nothing to prune


# --- in order --------------------------------------------------------------------------------------------------------


@jit
def _by_score(boxes: Float, scores: Float) -> Places:
    """Indices of the boxes that take part, best first."""
    flat, zero = boxes.reshape(-1), boxes.dtype.type(0)
    order, usable, found = np.empty(len(boxes), np.int32), np.empty(len(boxes), scores.dtype), 0
    for i in range(len(boxes)):
        area = area_of(flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3], zero)
        order[found], usable[found] = i, scores[i]  # overwritten by the next one unless it counts
        found += (area == area) & (usable[found] == usable[found])  # the copy, which no other thread writes to
    return sort_by(descending_keys(usable[:found]), order[:found])


@jit
def _by_group(idxs: Int, order: Places) -> tuple[Places, Int]:
    """Ranks sorted by group, best first within each, and where each group begins (one more: where the last ends)."""
    n = len(order)
    groups = np.empty(n, np.uint64)
    for rank in range(n):
        groups[rank] = np.uint64(idxs[order[rank]]) ^ np.uint64(1 << 63)
    own = groups.copy()  # no other thread writes to it
    ranks = sort_by(groups, np.arange(n).astype(np.int32))
    starts, found = np.empty(n + 1, np.int64), 0
    for i in range(n):
        starts[found] = i
        found += i == 0 or own[ranks[i]] != own[ranks[i - 1]]
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
def _exponent(side: float) -> int:
    """e of 4 ** (e - 1) <= side < 4 ** e; the same for all sides that are denormal."""
    return ((bits_of(side) >> 52) - 1021) >> 1


@jit
def _side(low: float, high: float) -> float:
    """The extent of a box on an axis, or what makes the error of its center small if that is more."""
    return max(high - low, abs(0.5 * low + 0.5 * high) * (ERROR * ERRORS_IN_SIDE))


@jit
def _plan(live: Float, start: int, stop: int) -> tuple[bool, float, Bool]:
    """Whether levels go by width and height, what sides are multiplied with before they get a level, and which levels
    there are, [2, 2 * EXPONENTS]."""
    zero = live.dtype.type(0)
    there = np.zeros((2, 2 * EXPONENTS), np.bool_)
    thin, total, count, most = np.int64(0), 0.0, np.int64(0), 0.0
    step = max(1, (stop - start) // SAMPLE)
    for i in range(start, stop, step):
        if live[4, i] > zero:
            width, height = np.float64(live[2, i]) - live[0, i], np.float64(live[3, i]) - live[1, i]
            thin += max(width, height) > THIN * min(width, height)
            total += math.log(max(width, height))
            count += 1
    by_aspect = 32 * thin > count
    for i in range(start, stop):
        if live[4, i] > zero:
            most = max(most, max(np.float64(live[2, i]) - live[0, i], np.float64(live[3, i]) - live[1, i]))
    # A level ends at the longest side, so that most are on one, or where some are far longer, at twice the typical one.
    typical = math.exp(total / max(count, 1))
    scale = (1 - 1e-9) / (most if most <= 3 * typical else 2 * typical) if count > 0 else 1.0
    scale = min(max(scale, 1 / FURTHEST), FURTHEST)
    for i in range(start, stop):
        if live[4, i] > zero:
            width = _side(np.float64(live[0, i]), np.float64(live[2, i])) * scale
            height = _side(np.float64(live[1, i]), np.float64(live[3, i])) * scale
            if not by_aspect:
                width = height = max(width, height)
            there[0, EXPONENTS + _exponent(width)] = True
            there[1, EXPONENTS + _exponent(height)] = True
    return by_aspect, scale, there


@jit
def _cell(center: float, per_unit: float) -> int:
    """Rises with the center, and that is all that is asked of it."""
    return np.int64(min(max(center * per_unit, -FURTHEST), FURTHEST))


@jit
def _place(column: int, row: int, level_x: int, level_y: int, mask: int) -> int:
    return (column + row * 0x9E3779B1 + level_x * 0x85EBCA6B + level_y * 0xC2B2AE35) & mask


@jit
def _suppressed_in(
    node: int, box: Any, threshold: float, corners: Float, nodes: NDArray[Any], zero: Any
) -> tuple[bool, int]:
    """Whether one of a chain of nodes suppresses a box, bounds left aside, and how many were asked."""
    x1, y1, x2, y2, area, _ = box
    asked = np.int64(0)
    while node >= 0:
        asked += 1
        bx1, by1, bx2, by2 = corners[node, 0], corners[node, 1], corners[node, 2], corners[node, 3]
        inter = overlap(x1, y1, x2, y2, bx1, by1, bx2, by2, zero)
        if _exceeds(inter, area_of(bx1, by1, bx2, by2, zero), area, threshold, zero):
            return True, asked
        node = np.int64(nodes[node, 5])
    return False, asked


@jit
def _enter(place: int, box: Any, heads: Places, corners: Float, nodes: NDArray[Any], used: int) -> int:
    x1, y1, x2, y2, _, bound = box
    corners[used, 0], corners[used, 1], corners[used, 2], corners[used, 3] = x1, y1, x2, y2
    corners[used, 4] = bound
    nodes[used, 5] = heads[place]
    heads[place] = used
    return used + 1


@jit
def _reach(threshold: float) -> float:
    return (1 - threshold) / (2 * threshold) * (1 + 1e-5) + 1e-5


@jit
def _through_grid(
    live: Float,
    ranks: Places,
    at: int,
    stop: int,
    threshold: float,
    by_aspect: bool,
    scale: float,
    there: Bool,
    per_unit: NDArray[np.float64],
    least: Any,
    heads: Places,
    nodes: NDArray[Any],
    corners: Float,
    used: int,
    kept: Bool,
) -> tuple[int, int]:
    """NMS of the boxes [at, stop), until some work is done. Returns the box to go on with and the number of nodes used.

    A node is an entry of a kept box in a cell: its corners and bound, seen as floats in `corners`, and in nodes[:, 5]
    the next node of the cell. The last of `heads` is the chain of boxes with an area under `least`.
    """
    zero, mask = live.dtype.type(0), len(heads) - 2
    # Of two boxes with an IoU over t no side is longer than 1 / t times that of the other, b / a, and they share more
    # than t / (1 + t) of a + b: their centers are less than (1 - t) / (2 t) a apart.
    reach, shorter, longer = _reach(threshold), threshold * (1 - 1e-5), (1 + 1e-5) / threshold
    work = np.int64(WORK // 8)
    while at < stop and work > 0:
        box = live[0, at], live[1, at], live[2, at], live[3, at], live[4, at], live[5, at]
        area = box[4]
        work -= 1
        if not (area > zero and area < np.inf):  # its IoU with any other box is 0
            kept[ranks[at]] = True
            at += 1
            continue
        x1, y1, x2, y2 = np.float64(box[0]), np.float64(box[1]), np.float64(box[2]), np.float64(box[3])
        width, height = _side(x1, x2) * scale, _side(y1, y2) * scale
        if not by_aspect:
            width = height = max(width, height)
        cx, cy = 0.5 * x1 + 0.5 * x2, 0.5 * y1 + 0.5 * y2
        low_x, high_x = _exponent(width * shorter), _exponent(width * longer)
        low_y, high_y = (_exponent(height * shorter), _exponent(height * longer)) if by_aspect else (low_x, high_x)
        suppressed = False
        for level_x in range(low_x, high_x + 1):
            if suppressed or not there[0, EXPONENTS + level_x]:
                continue
            column = _cell(cx, per_unit[EXPONENTS + level_x])
            first_y, last_y = (low_y, high_y) if by_aspect else (level_x, level_x)
            for level_y in range(first_y, last_y + 1):
                if suppressed or not there[1, EXPONENTS + level_y]:
                    continue
                row = _cell(cy, per_unit[EXPONENTS + level_y])
                node = np.int64(heads[_place(column, row, level_x, level_y, mask)])
                while node >= 0:
                    work -= 1
                    bx1, by1, bx2, by2 = corners[node, 0], corners[node, 1], corners[node, 2], corners[node, 3]
                    inter = overlap(box[0], box[1], box[2], box[3], bx1, by1, bx2, by2, zero)
                    if inter > box[5] + corners[node, 4] and _exceeds(
                        inter, area_of(bx1, by1, bx2, by2, zero), area, threshold, zero
                    ):
                        suppressed = True
                        break
                    node = np.int64(nodes[node, 5])
        if area < least and not suppressed:
            suppressed, asked = _suppressed_in(np.int64(heads[mask + 1]), box, threshold, corners, nodes, zero)
            work -= asked
        if not suppressed:
            kept[ranks[at]] = True
            level_x, level_y = _exponent(width), _exponent(height)
            reach_x, reach_y = reach * (x2 - x1) + ERROR * abs(cx), reach * (y2 - y1) + ERROR * abs(cy)
            across, down = per_unit[EXPONENTS + level_x], per_unit[EXPONENTS + level_y]
            for row in range(_cell(cy - reach_y, down), _cell(cy + reach_y, down) + 1):
                for column in range(_cell(cx - reach_x, across), _cell(cx + reach_x, across) + 1):
                    used = _enter(_place(column, row, level_x, level_y, mask), box, heads, corners, nodes, used)
            if area < least:
                used = _enter(mask + 1, box, heads, corners, nodes, used)
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
        found += (area == area) & (current[found] > lowest)  # the copy, which no other thread writes to
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


# --- matrix NMS ------------------------------------------------------------------------------------------------------


@jit
def _sweep(
    box: Any,
    x1: Float,
    y1: Float,
    x2: Float,
    y2: Float,
    area: Float,
    linear: bool,
    before: Any,
    highest: Any,
    least: Any,
) -> None:
    """Raise `highest` to the IoU with the box, and lower `least` to the quotient that decays by it.

    Where `before`, the box's own highest IoU, is 1, the linear quotient is infinite or NaN, and neither is less.
    """
    ax1, ay1, ax2, ay2, a_area = box
    zero, one = least.dtype.type(0), least.dtype.type(1)
    if linear:
        for j in range(len(x1)):
            inter = overlap(ax1, ay1, ax2, ay2, x1[j], y1[j], x2[j], y2[j], zero)
            iou = ratio(inter, a_area + area[j] - inter, zero)
            quotient = (one - iou) / (one - before)
            least[j] = quotient if quotient < least[j] else least[j]
            highest[j] = iou if iou > highest[j] else highest[j]
    else:
        for j in range(len(x1)):
            inter = overlap(ax1, ay1, ax2, ay2, x1[j], y1[j], x2[j], y2[j], zero)
            iou = ratio(inter, a_area + area[j] - inter, zero)
            exponent = before * before - iou * iou
            least[j] = exponent if exponent < least[j] else least[j]
            highest[j] = iou if iou > highest[j] else highest[j]


@jit
def _least_quotients(live: Float, starts: Int, linear: bool) -> Float:
    """Of each box the factor of its score, or for gaussian decay its logarithm times sigma."""
    n, work = live.shape[1], np.int64(0)
    x1, y1, x2, y2, area = live[0], live[1], live[2], live[3], live[4]
    highest, least = np.zeros(n, live.dtype), np.full(n, live.dtype.type(linear))
    for group in range(len(starts) - 1):
        stop = starts[group + 1]
        for i in range(starts[group], stop):
            j = i + 1
            box = x1[i], y1[i], x2[i], y2[i], area[i]
            _sweep(
                box, x1[j:stop], y1[j:stop], x2[j:stop], y2[j:stop], area[j:stop],
                linear, highest[i], highest[j:stop], least[j:stop],
            )  # fmt: skip
            work += 4 * (stop - i)
            if work > WORK:
                if interrupted():
                    return least
                work = np.int64(0)
    return least


# --- the operators ---------------------------------------------------------------------------------------------------


def _large_group(live: Float, ranks: Places, start: int, stop: int, threshold: float, kept: Bool) -> None:
    # In a crowd the first blocks fell most boxes, for less than the grid would take. If one does not, few will.
    left, before = stop - start, np.inf
    while FEW < left < before / 2:
        before, left = left, _blocks(live, ranks, start, left, threshold, kept, 1)
    if left <= FEW or threshold < LEAST_THRESHOLD:
        while left:
            left = _blocks(live, ranks, start, left, threshold, kept, WORK)
        return
    stop = start + left
    integer = np.int32 if live.itemsize == 4 else np.int64
    by_aspect, scale, there = _plan(live, start, stop)
    # Of each level the cells per unit: two hold what a box of the level reaches, to either side.
    per_unit = PER_UNIT * (scale / (2.02 * (_reach(threshold) + 2 / ERRORS_IN_SIDE)))
    per_unit[per_unit < np.finfo(np.float64).tiny] = 0  # one cell; what has lost its bits could make more than four
    heads = np.full((1 << int(left).bit_length()) + 1, -1, np.int32)
    nodes = np.empty((5 * left, 8), integer)  # the system gives only what is written to
    least = live.dtype.type(1e-32 if live.itemsize == 4 else 1e-290)
    used, at = 0, start
    while at < stop:
        at, used = _through_grid(
            live,
            ranks,
            at,
            stop,
            threshold,
            by_aspect,
            scale,
            there,
            per_unit,
            least,
            heads,
            nodes,
            nodes.view(live.dtype),
            used,
            kept,
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


def matrix_nms(
    boxes: Float,
    scores: Float,
    idxs: Int,
    method: int,
    sigma: float,
    score_threshold: float,
    keep: Int,
    kept_scores: Float,
) -> int:
    linear, dtype = method == SOFT_NMS_METHODS["linear"], boxes.dtype
    lowest, order = round_down(score_threshold, dtype), _by_score(boxes, scores)
    current = scores[order]
    order, current = order[current > lowest], current[current > lowest]
    ranks, starts = _by_group(idxs, order)
    least = _least_quotients(_gather(boxes, order, ranks, 0.0), starts, linear)
    with np.errstate(all="ignore"):
        current[ranks] *= least if linear else np.exp(least / dtype.type(sigma))
    order, current = order[current > lowest], current[current > lowest]
    best = np.lexsort((order, -current))
    keep[: len(best)], kept_scores[: len(best)] = order[best], current[best]
    return len(best)
