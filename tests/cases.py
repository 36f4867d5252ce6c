"""The cases that every operator must pass in every backend: one list, read by the tests and by tests.table.

A case calls an operator through its public face and returns its outputs. What a backend returns is ``comp``, what the
reference returns is ``ref``; :func:`difference` says whether they are equal as the contract demands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssd import ops
from fastssd.backends import active_backend

DTYPES = ("float32", "float64", "float16", "int32", "uint8")
# Operators with exp, log or atan inside agree within ULPs; all others bit for bit (docs/contract.md, Equality).
ROUNDED = {
    "encode_boxes",
    "decode_boxes",
    "complete_box_iou",
    "assign_targets",
    "soft_nms",
    "postprocess_detections",
    "multibox_cross_entropy",
    "multibox_cross_entropy_gradient",
}
ULP = 4


class Case(NamedTuple):
    operator: str
    name: str
    call: Callable[[], Any]


Boxes = NDArray[Any]


def random_boxes(rng: np.random.Generator, n: int, *, span: float = 100.0, size: float = 30.0) -> Boxes:
    corner = rng.random((n, 2)) * span
    return np.concatenate([corner, corner + rng.random((n, 2)) * size + 1], axis=1)


def crowd(rng: np.random.Generator, n: int, centers: int) -> Boxes:
    """Boxes in heaps, as a detector makes them before NMS."""
    heaps = random_boxes(rng, centers, span=1000, size=80)
    return heaps[rng.integers(0, centers, n)] + rng.normal(0, 3, (n, 4))


def box_sets(rng: np.random.Generator) -> Iterator[tuple[str, Boxes]]:
    """Sets of boxes, named by what is special about them."""
    typical = random_boxes(rng, 70)
    yield "typical", typical
    yield "empty", np.empty((0, 4))
    yield "single", random_boxes(rng, 1)
    yield "ties", np.round(random_boxes(rng, 60, span=12, size=12) / 4) * 4
    yield "equal", np.tile(random_boxes(rng, 1), (33, 1))
    yield "degenerate", with_rows(typical, [[5, 5, 5, 9], [7, 7, 7, 7], [9, 9, 3, 3], [9, 3, 3, 9], [0, 0, 0, 0]])
    yield "crowd", crowd(rng, 300, 12)
    yield "signed zeros", signed_zeros(rng)
    yield "huge beside small", huge_beside_small(rng)


def nonfinite(rng: np.random.Generator) -> Boxes:
    inf, nan = np.inf, np.nan
    bad = [[nan, 0, 5, 5], [0, nan, 5, 5], [0, 0, inf, 5], [-inf, 0, 5, 5], [-inf, -inf, inf, inf], [nan] * 4]
    return with_rows(random_boxes(rng, 40), bad)


def with_rows(boxes: Boxes, rows: list[list[float]]) -> Boxes:
    """`boxes` with these rows spread among them."""
    return np.insert(boxes, np.linspace(0, len(boxes), len(rows)).astype(int), rows, axis=0)


def extremes(rng: np.random.Generator) -> Boxes:
    """Areas that overflow and underflow float32, next to ordinary ones."""
    boxes = random_boxes(rng, 24)
    boxes[::4] *= 1e24
    boxes[1::4] *= 1e-30
    return boxes


def signed_zeros(rng: np.random.Generator) -> Boxes:
    """Boxes at the origin, of coordinates that are 0 or -0."""
    boxes = random_boxes(rng, 30, span=0, size=9)
    boxes[::3] -= boxes[::3, [2, 3, 2, 3]]  # they end there
    boxes[1::5, 2:] = 0
    return np.where((boxes == 0) & (rng.random(boxes.shape) < 0.5), -0.0, boxes)


def huge_beside_small(rng: np.random.Generator) -> Boxes:
    """A few boxes that dwarf the others, and a few that are next to nothing; every area is an ordinary number."""
    return with_rows(
        random_boxes(rng, 60),
        [[-1e9, -1e9, 1e9, 1e9], [0, 0, 1e9, 3], [7, 7, 7 + 1e-5, 7 + 1e-5], [1e8, 1e8, 2e8, 2e8]],
    )


def odd_bytes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The same truth values in bytes that are not only 0 and 1, as in a view of a 0/255 mask."""
    return np.where(mask, np.resize([255, 2, 1], mask.shape), 0).astype(np.uint8).view(np.bool_)


def unaligned(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in memory that begins at an odd address."""
    return np.frombuffer(b"." + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


def field(array: NDArray[Any]) -> NDArray[Any]:
    """The same values as a field of a structured array: far apart and not aligned."""
    records = np.zeros(len(array), [("tag", "u1"), ("value", array.dtype, array.shape[1:])])
    records["value"] = array
    return records["value"]


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


# The same values in every form of memory that NumPy has.
FORMS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "unaligned": unaligned,
    "field of records": field,
    "foreign byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "negative strides": lambda array: array[(slice(None, None, -1),) * array.ndim].copy()[
        (slice(None, None, -1),) * array.ndim
    ],
    "read-only": read_only,
    "odd bytes": lambda array: odd_bytes(array) if array.dtype == np.bool_ else array,
    "subclass": lambda array: array.view(np.ma.MaskedArray),
}


def strided(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in memory that is neither contiguous nor in order."""
    return np.repeat(array[::-1], 2, axis=0)[::2][::-1]


def as_dtype(array: Boxes, dtype: str) -> Boxes:
    return np.clip(array, 0, 255).astype(dtype) if dtype == "uint8" else array.astype(dtype)


def scores_of(rng: np.random.Generator, boxes: Boxes, *, steps: int = 0) -> NDArray[Any]:
    scores = rng.random(len(boxes))
    return np.round(scores * steps) / steps if steps else scores


def around(value: float, dtype: str = "float32") -> tuple[float, ...]:
    """A threshold at `value` and one ULP of the dtype to both sides, those of them that are in [0, 1]."""
    middle = np.dtype(dtype).type(value)
    near = (np.nextafter(middle, np.dtype(dtype).type(0)), middle, np.nextafter(middle, np.dtype(dtype).type(1)))
    return tuple(float(v) for v in near if 0 <= v <= 1)


def all_cases(seed: int = 0) -> Iterator[Case]:
    """Every case. The arrays are drawn from `seed`."""
    for make in (_boxes, _anchors, _iou, _matching, _mining, _multibox, _coding, _nms, _postprocess, _forms):
        yield from make(np.random.default_rng(seed))


def _boxes(rng: np.random.Generator) -> Iterator[Case]:
    sets = [*box_sets(rng), ("nonfinite", nonfinite(rng)), ("extremes", extremes(rng))]
    for name, boxes in sets:
        for dtype in DTYPES if name == "typical" else DTYPES[:2]:
            with np.errstate(all="ignore"):
                b = as_dtype(boxes, dtype)
            tag = f"{name} {dtype}"
            yield Case("box_area", tag, lambda b=b: ops.box_area(b))
            yield Case("clip_boxes_to_image", tag, lambda b=b: ops.clip_boxes_to_image(b, (50, 70.5)))
            yield Case("remove_small_boxes", tag, lambda b=b: ops.remove_small_boxes(b, 12))
            for source in ("xyxy", "xywh", "cxcywh"):
                for target in ("xyxy", "xywh", "cxcywh"):
                    yield Case(
                        "box_convert",
                        f"{tag} {source} to {target}",
                        lambda b=b, s=source, t=target: ops.box_convert(b, s, t),
                    )
    sides = np.float32(3) + np.arange(-3, 4, dtype=np.float32) * np.spacing(np.float32(3))
    threshold = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    yield Case("remove_small_boxes", "threshold", lambda: ops.remove_small_boxes(threshold, 3.0))
    yield Case("box_area", "non-contiguous", lambda: ops.box_area(strided(threshold)))
    yield Case(
        "clip_boxes_to_image", "leading dimensions", lambda: ops.clip_boxes_to_image(threshold[None, None], (1, 2))
    )


def _anchors(rng: np.random.Generator) -> Iterator[Case]:
    scales = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
    for dtype in ("float32", "float64"):
        for clip in (False, True):
            yield Case(
                "grid_anchors",
                f"TinySSD {dtype} clip={clip}",
                lambda d=dtype, c=clip: ops.grid_anchors([32, 16, 8, 4, 1], scales, clip=c, dtype=d),
            )
        yield Case(
            "grid_anchors",
            f"uneven {dtype}",
            lambda d=dtype: ops.grid_anchors(
                [(3, 5), (0, 4)], [[0.1], [0.3]], [[1, 3], [2]], image_size=(37, 91), dtype=d
            ),
        )


def _iou(rng: np.random.Generator) -> Iterator[Case]:
    sets = [*box_sets(rng), ("nonfinite", nonfinite(rng)), ("extremes", extremes(rng))]
    for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
        function = getattr(ops, name)
        for tag, boxes in sets:
            if name == "complete_box_iou" and tag == "extremes":
                continue  # its terms cancel to nothing but rounding there
            for dtype in DTYPES if tag == "typical" else DTYPES[:2]:
                with np.errstate(all="ignore"):
                    a, b = as_dtype(boxes, dtype), as_dtype(boxes[::2] + 1, dtype)
                yield Case(name, f"{tag} {dtype}", lambda f=function, a=a, b=b: f(a, b))
        a, b = random_boxes(rng, 9), random_boxes(rng, 133)
        yield Case(name, "none against many", lambda f=function, b=b: f(b[:0], b))
        yield Case(name, "mixed dtypes", lambda f=function, a=a, b=b: f(a.astype("float32"), b))
        yield Case(name, "non-contiguous", lambda f=function, a=a, b=b: f(strided(a), np.asfortranarray(b)))
        yield Case(
            name, "leading dimensions", lambda f=function, a=a, b=b: f(a.reshape(3, 1, 3, 4), b.reshape(7, 19, 4))
        )
    for tag, boxes in sets:
        for dtype in DTYPES[:2]:
            with np.errstate(all="ignore"):
                a, b = as_dtype(boxes, dtype), as_dtype(np.roll(boxes, 1, axis=0), dtype)
            yield Case("paired_box_iou", f"{tag} {dtype}", lambda a=a, b=b: ops.paired_box_iou(a, b))


def _matching(rng: np.random.Generator) -> Iterator[Case]:
    def both(tag: str, anchors: Boxes, gt: Any, degenerate: bool = False, **options: Any) -> Iterator[Case]:
        yield Case("match_anchors", tag, lambda: ops.match_anchors(anchors, gt, **options))
        if degenerate:
            return  # assign_targets refuses what it cannot encode
        labels = [np.arange(len(boxes)) % 3 + 1 for boxes in gt]
        labels = labels if isinstance(gt, list) else np.array(labels).reshape(gt.shape[:2])
        yield Case("assign_targets", tag, lambda: ops.assign_targets(anchors, gt, labels, **options))

    grid = ops.grid_anchors([16, 8, 4, 1], [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.88, 0.961)])
    for force in ("bipartite", "best", "low_quality", "none"):
        for dtype in DTYPES[:2]:
            anchors = grid.astype(dtype)
            gt = [random_boxes(rng, n, span=0.7, size=0.01) * [1, 1, 1.3, 1.3] for n in (4, 0, 1, 23)]
            gt = [np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4).astype(dtype) for boxes in gt]
            gt = [boxes + np.array([0, 0, 0.05, 0.05], dtype) for boxes in gt]
            yield from both(f"typical {force} {dtype}", anchors, gt, force_match=force)
            yield from both(f"ignored {force} {dtype}", anchors, gt, force_match=force, background_threshold=0.3)
            ties = [np.round(random_boxes(rng, n, span=6, size=6)) for n in (9, 40)]
            tied = np.round(random_boxes(rng, 60, span=6, size=6)).astype(dtype)
            yield from both(f"ties {force} {dtype}", tied, [boxes.astype(dtype) for boxes in ties], force_match=force)
            few = random_boxes(rng, 3).astype(dtype)
            yield from both(f"more truths than anchors {force} {dtype}", few, ties, force_match=force)
            yield from both(f"no anchors {force} {dtype}", few[:0], [few], force_match=force)
            far = [few + np.array(1e4, dtype)]
            yield from both(f"nothing overlaps {force} {dtype}", tied, far, force_match=force)
            flat = with_rows(random_boxes(rng, 5), [[3, 3, 3, 8], [9, 9, 1, 1]]).astype(dtype)
            yield from both(f"degenerate {force} {dtype}", tied, [flat], degenerate=True, force_match=force)
        # Two squares, one half of the other: IoU exactly 1/2; and thirds, which no float holds.
        halves = np.array([[0, 0, 2, 2], [0, 0, 1, 2], [5, 5, 8, 8]], np.float32)
        for threshold in (*around(0.5), *around(1 / 3), *around(1 / 3, "float64"), 0.0, 1.0):
            third = [np.array([[0, 0, 1, 2], [5, 5, 6, 8]], np.float32)]
            yield from both(
                f"threshold {threshold!r} {force}", halves, third, force_match=force, iou_threshold=threshold
            )
    padded = np.stack([random_boxes(rng, 6, span=0.5, size=0.3) / [1, 1, 4, 4] + [0, 0, 1, 1] for _ in range(3)])
    yield from both("padded", grid, padded.astype(np.float32), gt_counts=np.array([6, 0, 2]))
    yield from both("batch of none", grid, [])
    yield from both("non-contiguous", strided(grid), [strided(boxes) for boxes in padded])
    yield from both("crowd", random_boxes(rng, 3000), [random_boxes(rng, 64) for _ in range(3)])


def _mining(rng: np.random.Generator) -> Iterator[Case]:
    for dtype in DTYPES[:3]:
        for tag, steps in (("typical", 0), ("ties", 5), ("equal", 1)):
            loss = rng.random((4, 700)) * 5
            loss = (np.round(loss * steps) / steps if steps else loss).astype(dtype)
            positive = rng.random(loss.shape) < np.array([[0.01], [0.0], [0.2], [0.9]])
            for ratio, least in ((3.0, 0), (0.0, 5), (2.5, 1), (1e9, 0), (0.3, 10**9)):
                yield Case(
                    "mine_hard_negatives",
                    f"{tag} {dtype} ratio {ratio} least {least}",
                    lambda x=loss, p=positive, r=ratio, m=least: ops.mine_hard_negatives(
                        x, p, neg_pos_ratio=r, min_negatives=m
                    ),
                )
    loss = rng.normal(size=(3, 300))
    positive = rng.random(loss.shape) < 0.05
    special = loss.copy()
    special[:, ::7], special[:, 1::9], special[:, 2::50], special[1] = -np.inf, np.inf, np.nan, -np.inf
    yield Case("mine_hard_negatives", "nonfinite", lambda: ops.mine_hard_negatives(special, positive))
    yield Case("mine_hard_negatives", "signed zeros", lambda: ops.mine_hard_negatives(loss * 0, positive))
    yield Case(
        "mine_hard_negatives", "non-contiguous", lambda: ops.mine_hard_negatives(loss.T[::3].T, positive.T[::3].T)
    )
    for ratio in (np.inf, 1e308, 5e-324, 0.0):
        for least in (0, 4):
            yield Case(
                "mine_hard_negatives",
                f"ratio {ratio} least {least}",
                lambda r=ratio, m=least: ops.mine_hard_negatives(
                    loss, positive & [[True], [False], [True]], neg_pos_ratio=r, min_negatives=m
                ),
            )
    yield Case("mine_hard_negatives", "empty", lambda: ops.mine_hard_negatives(loss[:, :0], positive[:, :0]))
    yield Case("mine_hard_negatives", "no pictures", lambda: ops.mine_hard_negatives(loss[:0], positive[:0]))
    yield Case("mine_hard_negatives", "one picture", lambda: ops.mine_hard_negatives(loss[0], positive[0]))


def _multibox(rng: np.random.Generator) -> Iterator[Case]:
    def both(tag: str, logits: Any, labels: Any, **options: Any) -> Iterator[Case]:
        yield Case("multibox_cross_entropy", tag, lambda: ops.multibox_cross_entropy(logits, labels, **options))
        if logits.dtype.name not in DTYPES[:2] or logits.ndim < 3:
            return

        def gradient() -> Any:  # it has no face of its own: autograd calls it
            x, y, out = (np.ascontiguousarray(array) for array in (logits, labels, np.empty_like(logits)))
            active_backend().multibox_cross_entropy_gradient(x, y, y > 0, 0.3, out)
            return out

        yield Case("multibox_cross_entropy_gradient", tag, gradient)

    shape = (4, 300)
    labels = np.where(rng.random(shape) < [[0.01], [0.0], [0.2], [0.9]], 1, 0)
    for columns in (2, 4, 16, 17, 18, 91):
        some = np.where(rng.random(shape) < 0.1, -1, labels * rng.integers(1, columns, shape))
        for dtype in DTYPES[:3]:
            random = rng.normal(size=(*shape, columns))
            trained, lost = random.copy(), random.copy()
            trained[..., 0] += 8
            lost[..., 0] -= 200  # odds beyond what a float holds
            equal = np.broadcast_to(random[0, 0], random.shape)
            for tag, logits in (("random", random), ("trained", trained), ("lost", lost), ("equal", equal)):
                if dtype == "float16" and tag != "equal":
                    continue  # losses that tie but for ULPs, after rounding to float16
                for ratio, least in ((3.0, 0), (0.0, 5), (1e9, 0), (0.3, 10**9)):
                    name = f"{tag} {columns} {dtype} ratio {ratio} least {least}"
                    x = logits.astype(dtype)
                    yield from both(name, x, some, neg_pos_ratio=ratio, min_negatives=least)
        broken = random.astype("float32")
        broken[0, ::9, -1], broken[1, ::7, 0], broken[2, ::5] = np.nan, -np.inf, np.inf
        broken[3, ::11, 0], broken[3, 1::11, 0], broken[3, 2::11, -1] = np.nan, np.inf, -np.inf
        yield from both(f"nonfinite {columns}", broken, some, min_negatives=2)
    for ratio in (np.inf, 1e308, 5e-324, 0.0):
        yield from both(f"ratio {ratio}", random, some, neg_pos_ratio=ratio)  # some picture has no positive
    yield from both("only background", random[..., :1], labels * 0, min_negatives=3)
    yield from both("no anchors", random[:, :0], labels[:, :0])
    yield from both("no pictures", random[:0], labels[:0])
    yield from both("one picture", random[0], labels[0])
    yield from both("all ignored", random, labels * 0 - 1, min_negatives=3)
    yield from both("non-contiguous", strided(random), labels.T.copy().T)


def _coding(rng: np.random.Generator) -> Iterator[Case]:
    for dtype in DTYPES[:3]:
        boxes, anchors = random_boxes(rng, 90).astype(dtype), random_boxes(rng, 90).astype(dtype)
        deltas = rng.normal(size=(2, 90, 4)).astype(dtype)
        for variances in ((0.1, 0.2), (1.0, 1.0)):
            tag = f"typical {dtype} {variances}"
            yield Case("encode_boxes", tag, lambda b=boxes, a=anchors, v=variances: ops.encode_boxes(b, a, variances=v))
            yield Case(
                "decode_boxes", tag, lambda d=deltas, a=anchors, v=variances: ops.decode_boxes(d, a, variances=v)
            )
        yield Case("encode_boxes", f"empty {dtype}", lambda b=boxes: ops.encode_boxes(b[:0], b[:0]))
        yield Case("decode_boxes", f"empty {dtype}", lambda d=deltas, b=boxes: ops.decode_boxes(d[:, :0], b[:0]))
        yield Case(
            "encode_boxes", f"non-contiguous {dtype}", lambda b=boxes, a=anchors: ops.encode_boxes(strided(b), a)
        )
    wild = np.array([[np.nan, 0, 0, 0], [0, 0, 1e6, -1e6], [np.inf, 0, 0, 0], [1, 1, np.inf, -np.inf]])
    yield Case("decode_boxes", "nonfinite", lambda: ops.decode_boxes(wild, random_boxes(np.random.default_rng(0), 4)))


def _nms(rng: np.random.Generator) -> Iterator[Case]:
    def each(tag: str, boxes: Boxes, scores: NDArray[Any], thresholds: tuple[float, ...]) -> Iterator[Case]:
        groups = rng.integers(-2, 3, len(boxes))
        for t in thresholds:
            name = f"{tag} threshold {t!r}"
            yield Case("nms", name, lambda t=t: ops.nms(boxes, scores, t))
            yield Case("batched_nms", name, lambda t=t: ops.batched_nms(boxes, scores, groups, t))
        for method in ("linear", "gaussian"):
            if len(boxes) < 1000:
                yield Case("soft_nms", f"{tag} {method}", lambda m=method: ops.soft_nms(boxes, scores, method=m))

    usual = (0.3, 0.45, 0.5, 0.7)
    for tag, boxes in [*box_sets(rng), ("nonfinite", nonfinite(rng)), ("extremes", extremes(rng))]:
        for dtype in DTYPES if tag == "typical" else DTYPES[:2]:
            with np.errstate(all="ignore"):
                b = as_dtype(boxes, dtype)
            float_type = dtype if dtype in ("float32", "float64") else "float32"
            yield from each(f"{tag} {dtype}", b, scores_of(rng, b).astype(float_type), (0.0, *usual, 1.0))
            yield from each(f"{tag} tied scores {dtype}", b, scores_of(rng, b, steps=3).astype(float_type), (0.5,))
    # Pairs whose IoU is the threshold itself: kept at it, suppressed one ULP under it.
    for dtype in DTYPES[:2]:
        pairs = np.concatenate([[[i * 9, 0, i * 9 + 8, 8], [i * 9, 0, i * 9 + 8, i + 1]] for i in range(8)]).astype(
            dtype
        )
        exact = tuple(t for i in range(1, 9) for t in around(i / 8, dtype))
        yield from each(f"at the threshold {dtype}", pairs, np.linspace(1, 0, 16).astype(dtype), exact)
        thirds = np.array([[0, 0, 3, 3], [0, 0, 1, 3], [10, 0, 13, 3], [10, 0, 12, 3]], dtype)
        exact = (*around(1 / 3, dtype), *around(2 / 3, dtype), 1 / 3, 2 / 3)
        yield from each(f"thirds {dtype}", thirds, np.array([4, 3, 2, 1], dtype), exact)
    few = random_boxes(rng, 50)
    special = scores_of(rng, few, steps=4)
    special[::9], special[1::9], special[2::9], special[3::9] = np.nan, np.inf, -np.inf, -0.0
    yield from each("special scores", few, special, (0.3,))
    yield from each("non-contiguous", strided(few), scores_of(rng, few)[::-1], (0.3,))
    crowded, signed = crowd(rng, 600, 10), rng.random(600) * 20 - 10
    signed[::17], signed[1::50], signed[2::50] = np.nan, -0.0, 0.0
    for dtype in DTYPES[:2]:
        yield from each(f"scores of both signs and NaN {dtype}", crowded.astype(dtype), signed.astype(dtype), (0.45,))
    # Large enough that the faster kernels change their plan.
    for dtype in DTYPES[:2]:
        for tag, boxes in (("large crowd", crowd(rng, 3000, 40)), ("large sparse", random_boxes(rng, 6000, span=5000))):
            b = boxes.astype(dtype)
            yield from each(f"{tag} {dtype}", b, scores_of(rng, b).astype(dtype), (0.45,))
            yield from each(
                f"{tag} tied {dtype}", np.round(b / 8) * 8, scores_of(rng, b, steps=9).astype(dtype), (0.3, 0.5)
            )


def _postprocess(rng: np.random.Generator) -> Iterator[Case]:
    anchors = random_boxes(rng, 400)

    def case(tag: str, logits: Any, deltas: Any, priors: Any, **options: Any) -> Case:
        return Case(
            "postprocess_detections", tag, lambda: ops.postprocess_detections(logits, deltas, priors, **options)
        )

    for dtype in DTYPES[:3]:
        a = anchors.astype(dtype)
        deltas = (rng.normal(size=(3, 400, 4)) * 0.5).astype(dtype)
        random = rng.normal(size=(3, 400, 6)).astype(dtype)
        trained = random.copy()
        trained[..., 0] += 6
        trained[:, ::40, 1:] += rng.random((3, 10, 5)) * 9
        for tag, logits in (("random logits", random), ("trained logits", trained)):
            if dtype == "float16" and tag == "random logits":
                continue  # scores that tie only after rounding to float16 are a matter of ULPs
            yield case(f"{tag} {dtype}", logits, deltas, a)
            yield case(f"{tag} few places {dtype}", logits, deltas, a, topk=15, max_detections=7)
            yield case(f"{tag} clip {dtype}", logits, deltas, a, clip=(60.0, 80.0), score_threshold=0.2)
            yield case(f"{tag} sigmoid {dtype}", logits, deltas, a, activation="sigmoid", score_threshold=0.3)
            yield case(f"{tag} no cut {dtype}", logits, deltas, a, topk=None, score_threshold=0.0, iou_threshold=1.0)
    probabilities = np.round(rng.random((2, 400, 4)) * 8) / 8
    still = np.zeros((2, 400, 4))
    yield case("tied scores", probabilities, still, anchors, activation="none", score_threshold=0.5, topk=30)
    for threshold in around(0.5, "float64"):
        yield case(
            f"score at {threshold!r}", probabilities, still, anchors, activation="none", score_threshold=threshold
        )
    broken_logits, broken_deltas = random.astype("float32"), deltas.astype("float32")
    broken_logits[:, ::11, 2], broken_logits[:, 1::50, 0] = np.nan, np.inf
    broken_deltas[:, ::13, 3], broken_deltas[:, 1::13, 0], broken_deltas[:, 2::13, 2] = np.inf, np.nan, 1e4
    yield case("nonfinite", broken_logits, broken_deltas, anchors.astype("float32"), topk=20)
    yield case("no anchors", random[:, :0], deltas[:, :0], anchors[:0])
    yield case("no pictures", random[:0], deltas[:0], anchors)
    yield case("only background", random[..., :1], deltas, anchors)
    yield case("no places", random, deltas, anchors, max_detections=0)
    yield case("one picture", trained[0], deltas[0], a)
    yield case("non-contiguous", trained.transpose(1, 0, 2).copy().transpose(1, 0, 2), strided(deltas), a)


def _forms(rng: np.random.Generator) -> Iterator[Case]:
    """Every operator that takes arrays, with each of them in every form."""
    boxes, anchors, gt = random_boxes(rng, 40), random_boxes(rng, 40), random_boxes(rng, 5)
    scores, loss, positive = rng.random(40), rng.random((3, 40)), rng.random((3, 40)) < 0.1
    groups, labels, classes = rng.integers(0, 3, 40), rng.integers(1, 4, 5), positive * rng.integers(1, 5, (3, 40))
    logits, deltas = rng.normal(size=(3, 40, 5)), rng.normal(size=(3, 40, 4))
    calls: list[tuple[Callable[..., Any], tuple[NDArray[Any], ...]]] = [
        (ops.box_area, (boxes,)),
        (lambda b: ops.box_convert(b, "xyxy", "cxcywh"), (boxes,)),
        (lambda b: ops.clip_boxes_to_image(b, (50, 60)), (boxes,)),
        (lambda b: ops.remove_small_boxes(b, 9.0), (boxes,)),
        (ops.box_iou, (boxes, anchors)),
        (ops.generalized_box_iou, (boxes, anchors)),
        (ops.distance_box_iou, (boxes, anchors)),
        (ops.complete_box_iou, (boxes, anchors)),
        (ops.paired_box_iou, (boxes, anchors)),
        (ops.match_anchors, (anchors, gt)),
        (ops.assign_targets, (anchors, gt, labels)),
        (ops.mine_hard_negatives, (loss, positive)),
        (ops.multibox_cross_entropy, (logits, classes)),
        (ops.encode_boxes, (boxes, anchors)),
        (ops.decode_boxes, (deltas, anchors)),
        (lambda b, s: ops.nms(b, s, 0.3), (boxes, scores)),
        (lambda b, s, g: ops.batched_nms(b, s, g, 0.3), (boxes, scores, groups)),
        (ops.soft_nms, (boxes, scores)),
        (ops.postprocess_detections, (logits, deltas, anchors)),
    ]
    names = [
        *("box_area", "box_convert", "clip_boxes_to_image", "remove_small_boxes", "box_iou", "generalized_box_iou"),
        *("distance_box_iou", "complete_box_iou", "paired_box_iou", "match_anchors", "assign_targets"),
        *("mine_hard_negatives", "multibox_cross_entropy", "encode_boxes", "decode_boxes", "nms", "batched_nms"),
        *("soft_nms", "postprocess_detections"),
    ]
    for operator, (call, arrays) in zip(names, calls, strict=True):
        for dtype in DTYPES[:2]:
            plain = [array.astype(dtype) if array.dtype.kind == "f" else array for array in arrays]
            for form, make in FORMS.items():
                given = [make(array) for array in plain]
                yield Case(operator, f"{form} {dtype}", lambda f=call, given=given: f(*given))


def difference(operator: str, ref: Any, comp: Any) -> str | None:
    """How `comp` differs from `ref` beyond what the contract allows; None where it does not."""
    refs, comps = (value if isinstance(value, tuple) else (value,) for value in (ref, comp))
    for place, (r, c) in enumerate(zip(refs, comps, strict=True)):
        r, c = np.asarray(r), np.asarray(c)
        if r.dtype != c.dtype or r.shape != c.shape:
            return f"output {place}: {r.dtype} {r.shape} became {c.dtype} {c.shape}"
        if operator in ROUNDED and r.dtype.kind == "f" and r.size:
            finite = np.isfinite(r)
            largest = np.abs(r[finite]).max(initial=0)
            near = np.abs(r[finite].astype(np.float64) - c[finite]) <= ULP * np.finfo(r.dtype).eps * largest
            same = near.all() and np.array_equal(r[~finite], c[~finite], equal_nan=True)
        else:
            same = np.array_equal(r, c, equal_nan=r.dtype.kind == "f")
        # -0 is not 0; the sign of a NaN says nothing, nor does that of what is not 0 in both.
        zero = np.zeros(r.shape, bool)
        if r.dtype.kind == "f":
            zero = (r == 0) & (c == 0) & (np.signbit(r) != np.signbit(c))
        if not same or zero.any():
            wrong = np.argwhere(~((r == c) | ((r != r) & (c != c))) | zero)
            at = tuple(wrong[0]) if r.ndim else ()
            count = f"{len(wrong)} of {r.size} differ"
            return f"output {place}: {count}, first at {[int(i) for i in at]}: {r[at]!r} became {c[at]!r}"
    return None
