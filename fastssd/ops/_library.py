"""The operators inside torch: ``torch.ops.fastssd.*``, for torch.compile, torch.export, autograd, vmap and devices.

Eager calls on plain tensors of the CPU never come here (:mod:`fastssd.ops._face`). One line of ``OPERATORS`` is one
operator: its schema, what is checked of its shapes, its outputs as they are known before it runs, its derivative, and
what it does under vmap. Where it runs, :mod:`fastssd.ops._device` says.

Importing this module registers the operators. :mod:`fastssd.ops` does so if torch is there already, else the first
call that torch has to dispatch does, and so does :mod:`fastssd.detection`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from fastssd.ops import _device as device
from fastssd.ops import _face as face
from fastssd.ops import _formulas as formulas
from fastssd.ops import _vmap as vmap
from fastssd.ops.matching import Matches, Targets
from fastssd.ops.multibox import MultiboxLoss
from fastssd.ops.postprocess import Detections

_library = torch.library.Library("fastssd", "DEF")

# --- shapes: what is checked before a formula runs or a graph is traced ----------------------------------------------


def _check_nothing(*_: Any) -> None:
    pass


def _check_boxes(boxes: Tensor, *_: Any) -> None:
    face.check_shape("boxes", boxes, ("...", 4))


def _check_list(boxes: Tensor, *_: Any) -> None:
    face.check_shape("boxes", boxes, ("N", 4))


def _check_pairwise(boxes1: Tensor, boxes2: Tensor) -> None:
    face.check_shape("boxes1", boxes1, ("...", "N", 4))
    face.check_shape("boxes2", boxes2, ("...", "M", 4))


def _check_paired(boxes1: Tensor, boxes2: Tensor) -> None:
    face.check_shape("boxes1", boxes1, ("...", 4))
    face.check_shape("boxes2", boxes2, boxes1.shape)


def _check_encode(boxes: Tensor, anchors: Tensor, *_: Any) -> None:
    face.check_shape("anchors", anchors, ("A", 4))
    face.check_shape("boxes", boxes, ("...", anchors.shape[0], 4))


def _check_decode(deltas: Tensor, anchors: Tensor, *_: Any) -> None:
    face.check_shape("anchors", anchors, ("A", 4))
    face.check_shape("deltas", deltas, ("...", anchors.shape[0], 4))


def _check_matching(anchors: Tensor, gt_boxes: Tensor, *_: Any) -> None:
    face.check_shape("anchors", anchors, ("A", 4))
    face.check_shape("gt_boxes", gt_boxes, ("G", 4) if gt_boxes.ndim == 2 else ("B", "G", 4))


def _check_mining(loss: Tensor, positive: Tensor, *_: Any) -> None:
    face.check_shape("loss", loss, ("A",) if loss.ndim == 1 else ("B", "A"))
    face.check_shape("positive", positive, loss.shape)
    if positive.dtype is not torch.bool:
        raise TypeError(f"positive: expected bool, got dtype {positive.dtype}")


def _check_multibox(logits: Tensor, labels: Tensor, *_: Any) -> None:
    face.check_shape("logits", logits, ("A", "C") if logits.ndim == 2 else ("B", "A", "C"))
    face.check_shape("labels", labels, logits.shape[:-1])
    if labels.dtype.is_floating_point or labels.dtype is torch.bool:
        raise TypeError(f"labels: expected integers, got dtype {labels.dtype}")
    if logits.shape[-1] < 1:
        raise ValueError("logits: expected at least one column, the background; got none")


def _check_multibox_gradient(scale: Tensor, logits: Tensor, labels: Tensor, *_: Any) -> None:
    _check_multibox(logits, labels)


def _check_nms(boxes: Tensor, scores: Tensor, *_: Any) -> None:
    face.check_shape("boxes", boxes, ("N", 4))
    face.check_shape("scores", scores, ("N",))


def _check_postprocess(logits: Tensor, deltas: Tensor, anchors: Tensor, *_: Any) -> None:
    face.check_shape("anchors", anchors, ("A", 4))
    count = anchors.shape[0]
    face.check_shape("logits", logits, (count, "C") if logits.ndim == 2 else ("B", count, "C"))
    face.check_shape("deltas", deltas, (*logits.shape[:-1], 4))
    if logits.shape[-1] < 1:
        raise ValueError("logits: expected at least one column, the background; got none")


# --- outputs: their shapes and dtypes, known before the operator runs -------------------------------------------------


def _floats(like: Tensor, shape: Sequence[Any], *promoted: Tensor) -> Tensor:
    return like.new_empty(shape, dtype=device.float_dtype(*(promoted or (like,))))


def _integers(like: Tensor, *shape: Any) -> Tensor:
    return like.new_empty(shape, dtype=torch.int64)


def _fake_like(first: Tensor, *others: Any) -> Tensor:
    return _floats(first, first.shape, first, *(other for other in others if isinstance(other, Tensor)))


def _fake_scalars(first: Tensor, *others: Tensor) -> Tensor:
    return _floats(first, first.shape[:-1], first, *others)


def _fake_pairwise(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    lead = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    return _floats(boxes1, (*lead, boxes1.shape[-2], boxes2.shape[-2]), boxes1, boxes2)


def _fake_grid_anchors(
    grid_sizes: Sequence[int],
    scales: Sequence[float],
    scales_per_level: Sequence[int],
    aspect_ratios: Sequence[float],
    ratios_per_level: Sequence[int],
    image_size: Sequence[float] = (1.0, 1.0),
    clip: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    cells = [rows * columns for rows, columns in zip(grid_sizes[::2], grid_sizes[1::2], strict=True)]
    each = [len_s + len_r - 1 for len_s, len_r in zip(scales_per_level, ratios_per_level, strict=True)]
    return torch.empty(
        (sum(count * k for count, k in zip(cells, each, strict=True)), 4), dtype=dtype or torch.float32, device=device
    )


def _fake_match_anchors(anchors: Tensor, gt_boxes: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (*gt_boxes.shape[:-2], anchors.shape[0])
    return _integers(anchors, *shape), _floats(anchors, shape, anchors, gt_boxes)


def _fake_assign_targets(anchors: Tensor, gt_boxes: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    gt_idx, iou = _fake_match_anchors(anchors, gt_boxes)
    return torch.empty_like(gt_idx), iou.new_empty((*iou.shape, 4)), gt_idx


def _fake_multibox(logits: Tensor, labels: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _floats(logits, ()), labels.new_empty(labels.shape, dtype=torch.bool)


def _fake_kept(boxes: Tensor, *_: Any) -> Tensor:
    return _integers(boxes, torch.library.get_ctx().new_dynamic_size())


def _fake_soft_nms(boxes: Tensor, scores: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    keep = _fake_kept(boxes)
    return keep, _floats(boxes, keep.shape, boxes, scores)


def _fake_postprocess(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    topk: int | None = 400,
    max_detections: int = 200,
    *_: Any,
) -> tuple[Tensor, ...]:
    lead = logits.shape[:-2]
    places = (*lead, max_detections)
    boxes = _floats(logits, (*places, 4), logits, deltas, anchors)
    integers = (_integers(logits, *places), _integers(logits, *places), _integers(logits, *lead))
    return boxes, boxes.new_empty(places), *integers


# --- derivatives -----------------------------------------------------------------------------------------------------


class Derivative(NamedTuple):
    """What :func:`torch.library.register_autograd` takes, and what torch.func does."""

    save: Callable[..., None]
    backward: Callable[..., Any]
    formula: Callable[..., Any]
    """The whole operator in torch operations, for torch.func, which does not see `backward`."""


# torch hands `inputs` over with all defaults, and wants gradients, like `ctx.needs_input_grad`, without those that the
# caller left out.


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = [value if isinstance(value, Tensor) else None for value in inputs]
    ctx.save_for_backward(*tensors)
    ctx.options = [None if isinstance(value, Tensor) else value for value in inputs]


def _of(formula: Callable[..., Tensor]) -> Derivative:
    """The derivative of a torch formula of the operator's arguments."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values = [
            tensor if tensor is not None else option
            for tensor, option in zip(ctx.saved_tensors, ctx.options, strict=True)
        ]
        wanted = [place for place, needed in enumerate(ctx.needs_input_grad) if needed]

        def value(*tensors: Tensor) -> Tensor:
            given = list(values)
            for place, tensor in zip(wanted, tensors, strict=True):
                given[place] = tensor
            return formula(*(each.to(grad.dtype) if isinstance(each, Tensor) else each for each in given))

        pull: Any = torch.func.vjp(value, *(values[place] for place in wanted))[1]
        found = dict(zip(wanted, pull(grad), strict=True))
        return tuple(found.get(place) for place in range(len(ctx.needs_input_grad)))

    return Derivative(_save, backward, formula)


def _none(name: str) -> Derivative:
    """No derivative: a backward pass raises, when it runs and not when it is traced."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)  # zeros would not hang on the backward pass, and raise in the forward one
        _save(ctx, inputs, output)

    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad = next(each for each in grads if each is not None)
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        return tuple(torch.ops.fastssd._no_gradient(grad, tensor, name) if need else None for tensor, need in needed)

    def formula(*_: Any) -> Any:
        raise NotImplementedError(f"fastssd.ops.{name} has no gradient; detach its inputs")

    return Derivative(save, backward, formula)


def _save_multibox(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _backward_multibox(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    logits, labels, selected = ctx.saved_tensors
    gradient = torch.ops.fastssd.multibox_cross_entropy_gradient(grad, logits, labels, selected)
    return gradient.to(logits.dtype), *(None for _ in ctx.needs_input_grad[1:])


def _encode(boxes: Tensor, anchors: Tensor, variances: Sequence[float]) -> Tensor:
    return formulas.encode_boxes(boxes, anchors, *variances)


def _decode(deltas: Tensor, anchors: Tensor, variances: Sequence[float]) -> Tensor:
    return formulas.decode_boxes(deltas, anchors, *variances)


# --- the operators ---------------------------------------------------------------------------------------------------


class Operator(NamedTuple):
    arguments: str
    returns: str
    check: Callable[..., None]
    fake: Callable[..., Any]
    derivative: Derivative | None = None  # None: all outputs are integers or booleans
    vmap: Callable[..., Any] | None = None


_PAIR = "Tensor boxes1, Tensor boxes2"
_TRUTH = (
    'Tensor? gt_counts=None, float iou_threshold=0.5, float? background_threshold=None, str force_match="bipartite"'
)
_VARIANCES = "float[] variances=[0.1, 0.2]"
_MINING = "float neg_pos_ratio=3.0, SymInt min_negatives=0"
_GRID = (
    "SymInt[] grid_sizes, float[] scales, int[] scales_per_level, float[] aspect_ratios, int[] ratios_per_level, "
    "float[] image_size=[1.0, 1.0], bool clip=False, ScalarType? dtype=None, Device? device=None"
)
_POSTPROCESS = (
    "Tensor logits, Tensor deltas, Tensor anchors, float score_threshold=0.01, float iou_threshold=0.45, "
    "SymInt? topk=400, SymInt max_detections=200, float[]? clip=None, "
    f'str activation="softmax", {_VARIANCES}'
)
_SOFT_NMS = (
    'Tensor boxes, Tensor scores, str method="linear", float iou_threshold=0.3, float sigma=0.5, '
    'float score_threshold=0.001, str nonfinite="drop"'
)

OPERATORS = {
    "box_area": Operator("Tensor boxes", "Tensor", _check_boxes, _fake_scalars, _of(formulas.box_area), vmap.leading),
    "box_convert": Operator(
        "Tensor boxes, str in_fmt, str out_fmt",
        "Tensor",
        _check_boxes,
        _fake_like,
        _of(formulas.box_convert),
        vmap.leading,
    ),
    "clip_boxes_to_image": Operator(
        "Tensor boxes, float[] size",
        "Tensor",
        _check_boxes,
        _fake_like,
        _of(lambda boxes, size: formulas.clip_boxes_to_image(boxes, *size)),
        vmap.leading,
    ),
    "remove_small_boxes": Operator(
        "Tensor boxes, float min_size", "Tensor", _check_list, _fake_kept, None, vmap.refuse
    ),
    "grid_anchors": Operator(_GRID, "Tensor", _check_nothing, _fake_grid_anchors),
    "box_iou": Operator(_PAIR, "Tensor", _check_pairwise, _fake_pairwise, _of(formulas.box_iou), vmap.pairwise),
    "generalized_box_iou": Operator(
        _PAIR, "Tensor", _check_pairwise, _fake_pairwise, _of(formulas.generalized_box_iou), vmap.pairwise
    ),
    "distance_box_iou": Operator(
        _PAIR, "Tensor", _check_pairwise, _fake_pairwise, _of(formulas.distance_box_iou), vmap.pairwise
    ),
    "complete_box_iou": Operator(
        _PAIR, "Tensor", _check_pairwise, _fake_pairwise, _of(formulas.complete_box_iou), vmap.pairwise
    ),
    "paired_box_iou": Operator(
        _PAIR, "Tensor", _check_paired, _fake_scalars, _of(formulas.paired_box_iou), vmap.paired
    ),
    "match_anchors": Operator(
        f"Tensor anchors, Tensor gt_boxes, {_TRUTH}",
        "(Tensor gt_idx, Tensor iou)",
        _check_matching,
        _fake_match_anchors,
        _none("match_anchors"),
        vmap.matching,
    ),
    "assign_targets": Operator(
        f"Tensor anchors, Tensor gt_boxes, Tensor gt_labels, {_TRUTH}, {_VARIANCES}",
        "(Tensor labels, Tensor deltas, Tensor gt_idx)",
        _check_matching,
        _fake_assign_targets,
        _none("assign_targets"),
        vmap.matching,
    ),
    "mine_hard_negatives": Operator(
        f"Tensor loss, Tensor positive, {_MINING}",
        "Tensor",
        _check_mining,
        lambda loss, *_: loss.new_empty(loss.shape, dtype=torch.bool),
        None,
        vmap.mining,
    ),
    "multibox_cross_entropy": Operator(
        f"Tensor logits, Tensor labels, {_MINING}",
        "(Tensor loss, Tensor selected)",
        _check_multibox,
        _fake_multibox,
        Derivative(_save_multibox, _backward_multibox, formulas.multibox_cross_entropy),
        vmap.multibox_cross_entropy,
    ),
    "multibox_cross_entropy_gradient": Operator(
        "Tensor scale, Tensor logits, Tensor labels, Tensor selected",
        "Tensor",
        _check_multibox_gradient,
        lambda scale, logits, *_: _floats(logits, logits.shape),
        _none("multibox_cross_entropy"),
        vmap.multibox_cross_entropy_gradient,
    ),
    "encode_boxes": Operator(
        f"Tensor boxes, Tensor anchors, {_VARIANCES}", "Tensor", _check_encode, _fake_like, _of(_encode), vmap.coding
    ),
    "decode_boxes": Operator(
        f"Tensor deltas, Tensor anchors, {_VARIANCES}", "Tensor", _check_decode, _fake_like, _of(_decode), vmap.coding
    ),
    "nms": Operator(
        'Tensor boxes, Tensor scores, float iou_threshold, str nonfinite="drop"',
        "Tensor",
        _check_nms,
        _fake_kept,
        None,
        vmap.refuse,
    ),
    "batched_nms": Operator(
        'Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold, str nonfinite="drop"',
        "Tensor",
        _check_nms,
        _fake_kept,
        None,
        vmap.refuse,
    ),
    "soft_nms": Operator(
        _SOFT_NMS, "(Tensor keep, Tensor scores)", _check_nms, _fake_soft_nms, _none("soft_nms"), vmap.refuse
    ),
    "postprocess_detections": Operator(
        _POSTPROCESS,
        "(Tensor boxes, Tensor scores, Tensor labels, Tensor anchor_idx, Tensor counts)",
        _check_postprocess,
        _fake_postprocess,
        _none("postprocess_detections"),
        vmap.postprocess_detections,
    ),
}


def _checked(check: Callable[..., None], function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        check(*arguments)
        return function(*arguments)

    return run


def _register(name: str, operator: Operator) -> None:
    qualified = f"fastssd::{name}"
    _library.define(
        f"{name}({operator.arguments}) -> {operator.returns}",
        tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
    )
    on_cpu = device.ON_CPU.get(name) or device.by_kernel(name)
    on_device = device.ON_DEVICE.get(name)
    _library.impl(name, on_cpu, "CPU")
    # Every other device, known or not.
    _library.impl(name, _checked(operator.check, on_device) if on_device else on_cpu, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, _checked(operator.check, operator.fake), lib=_library)
    if operator.derivative is not None:
        torch.library.register_autograd(
            qualified, operator.derivative.backward, setup_context=operator.derivative.save, lib=_library
        )
    if operator.vmap is not None:
        rule = operator.vmap
        torch.library.register_vmap(
            qualified, lambda info, dims, *values: rule(name, info.batch_size, dims, values), lib=_library
        )


def run(name: str, *values: Any) -> Any:
    """``torch.ops.fastssd.NAME(*values)``, or its formula where torch.func differentiates by one of `values`."""
    derivative = OPERATORS[name].derivative
    if derivative is not None and not torch.compiler.is_dynamo_compiling():
        tensors = [value for value in values if isinstance(value, Tensor)]
        if any(torch._C._functorch.is_gradtrackingtensor(tensor) for tensor in tensors):
            OPERATORS[name].check(*values)
            schema = getattr(torch.ops.fastssd, name).default._schema
            given = [*values, *(argument.default_value for argument in schema.arguments[len(values) :])]
            dtype = device.float_dtype(*(tensor for tensor in tensors if tensor.is_floating_point()))
            floats = [isinstance(each, Tensor) and each.is_floating_point() for each in given]
            return derivative.formula(
                *(each.to(dtype) if is_float else each for each, is_float in zip(given, floats, strict=True))
            )
    return getattr(torch.ops.fastssd, name)(*values)


def _raise_no_gradient(grad: Tensor, like: Tensor, name: str) -> Tensor:
    raise NotImplementedError(f"fastssd.ops.{name} has no gradient; detach its inputs or its result")


for _name, _operator in OPERATORS.items():
    _register(_name, _operator)
_library.define("_no_gradient(Tensor grad, Tensor like, str name) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("_no_gradient", _raise_no_gradient, "CompositeExplicitAutograd")
torch.library.register_fake("fastssd::_no_gradient", lambda grad, like, name: torch.empty_like(like), lib=_library)
for _kind in (Matches, Targets, MultiboxLoss, Detections):  # so that torch.export can save a graph that returns one
    _pytree._register_namedtuple(_kind, serialized_type_name=f"fastssd.ops.{_kind.__name__}")
