"""The operators inside torch: ``torch.ops.fastssd.*``, for torch.compile, torch.export, autograd, vmap and devices.

Eager calls on plain tensors of the CPU never come here (:mod:`fastssd.ops._face`). One line of ``OPERATORS`` is one
operator: its schema, what is checked of its shapes, its outputs as they are known before it runs, its derivative, and
what it does under vmap. Where it runs, :mod:`fastssd.ops._device` says.

Importing this module registers the operators. :mod:`fastssd.ops` does so if torch is there already, else the first
call that torch has to dispatch does, and so does :mod:`fastssd.detection`.

Every torch since 2.0 will do. What an older one cannot be told of an operator is replaced by an error that says which
torch can (docs/torch.md); a registration that fails leaves nothing behind, so that the next import starts anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from fastssd.ops import _derivatives as derivatives
from fastssd.ops import _device as device
from fastssd.ops import _face as face
from fastssd.ops import _formulas as formulas
from fastssd.ops import _options as options
from fastssd.ops import _shapes as shapes
from fastssd.ops import _vmap as vmap
from fastssd.ops.matching import Matches, Targets
from fastssd.ops.multibox import MultiboxLoss
from fastssd.ops.postprocess import Detections

# --- the operators ---------------------------------------------------------------------------------------------------


class Operator(NamedTuple):
    arguments: str
    returns: str
    check: Callable[..., None]
    fake: Callable[..., Any]
    derivative: derivatives.Derivative | None = None  # None: all outputs are integers or booleans
    vmap: Callable[..., Any] | None = None


# Sizes are scalars, which may be symbolic: one graph for pictures of all sizes. Floats would be constants of a graph.
_PAIR = "Tensor boxes1, Tensor boxes2"
_TRUTH = (
    'Tensor? gt_counts=None, float iou_threshold=0.5, float? background_threshold=None, str force_match="bipartite"'
)
_VARIANCES = "float[] variances=[0.1, 0.2]"
_MINING = "float neg_pos_ratio=3.0, SymInt min_negatives=0"
_GRID = (
    "SymInt[] grid_sizes, float[] scales, int[] scales_per_level, float[] aspect_ratios, int[] ratios_per_level, "
    "Scalar[]? image_size=None, bool clip=False, ScalarType? dtype=None, Device? device=None"
)
_POSTPROCESS = (
    "Tensor logits, Tensor deltas, Tensor anchors, float score_threshold=0.01, float iou_threshold=0.45, "
    "SymInt? topk=400, SymInt max_detections=200, Scalar[]? clip=None, "
    f'str activation="softmax", {_VARIANCES}'
)
_SOFT_NMS = (
    'Tensor boxes, Tensor scores, str method="linear", float iou_threshold=0.3, float sigma=0.5, '
    'float score_threshold=0.001, str nonfinite="drop"'
)

OPERATORS = {
    "box_area": Operator(
        "Tensor boxes",
        "Tensor",
        shapes.check_boxes,
        shapes.fake_scalars,
        derivatives.of(formulas.box_area),
        vmap.leading,
    ),
    "box_convert": Operator(
        "Tensor boxes, str in_fmt, str out_fmt",
        "Tensor",
        shapes.check_boxes,
        shapes.fake_like,
        derivatives.of(formulas.box_convert),
        vmap.leading,
    ),
    "clip_boxes_to_image": Operator(
        "Tensor boxes, Scalar[] size",
        "Tensor",
        shapes.check_boxes,
        shapes.fake_like,
        derivatives.of(lambda boxes, size: formulas.clip_boxes_to_image(boxes, *size)),
        vmap.leading,
    ),
    "remove_small_boxes": Operator(
        "Tensor boxes, Scalar min_size", "Tensor", shapes.check_list, shapes.fake_kept, None, vmap.refuse
    ),
    "grid_anchors": Operator(_GRID, "Tensor", shapes.check_nothing, shapes.fake_grid_anchors),
    "box_iou": Operator(
        _PAIR, "Tensor", shapes.check_pairwise, shapes.fake_pairwise, derivatives.of(formulas.box_iou), vmap.pairwise
    ),
    "generalized_box_iou": Operator(
        _PAIR,
        "Tensor",
        shapes.check_pairwise,
        shapes.fake_pairwise,
        derivatives.of(formulas.generalized_box_iou),
        vmap.pairwise,
    ),
    "distance_box_iou": Operator(
        _PAIR,
        "Tensor",
        shapes.check_pairwise,
        shapes.fake_pairwise,
        derivatives.of(formulas.distance_box_iou),
        vmap.pairwise,
    ),
    "complete_box_iou": Operator(
        _PAIR,
        "Tensor",
        shapes.check_pairwise,
        shapes.fake_pairwise,
        derivatives.of(formulas.complete_box_iou),
        vmap.pairwise,
    ),
    "paired_box_iou": Operator(
        _PAIR, "Tensor", shapes.check_paired, shapes.fake_scalars, derivatives.of(formulas.paired_box_iou), vmap.leading
    ),
    "match_anchors": Operator(
        f"Tensor anchors, Tensor gt_boxes, {_TRUTH}",
        "(Tensor gt_idx, Tensor iou)",
        shapes.check_matching,
        shapes.fake_match_anchors,
        derivatives.none("match_anchors"),
        vmap.matching,
    ),
    "assign_targets": Operator(
        f"Tensor anchors, Tensor gt_boxes, Tensor gt_labels, {_TRUTH}, {_VARIANCES}",
        "(Tensor labels, Tensor deltas, Tensor gt_idx)",
        shapes.check_assigning,
        shapes.fake_assign_targets,
        derivatives.none("assign_targets"),
        vmap.matching,
    ),
    "mine_hard_negatives": Operator(
        f"Tensor loss, Tensor positive, {_MINING}",
        "Tensor",
        shapes.check_mining,
        shapes.fake_mining,
        None,
        vmap.mining,
    ),
    "multibox_cross_entropy": Operator(
        f"Tensor logits, Tensor labels, {_MINING}",
        "(Tensor loss, Tensor selected)",
        shapes.check_multibox,
        shapes.fake_multibox,
        derivatives.multibox_cross_entropy(),
        vmap.multibox_cross_entropy,
    ),
    "multibox_cross_entropy_gradient": Operator(
        "Tensor scale, Tensor logits, Tensor labels, Tensor selected",
        "Tensor",
        shapes.check_multibox_gradient,
        shapes.fake_multibox_gradient,
        derivatives.none("multibox_cross_entropy"),
        vmap.multibox_cross_entropy_gradient,
    ),
    "encode_boxes": Operator(
        f"Tensor boxes, Tensor anchors, {_VARIANCES}",
        "Tensor",
        shapes.check_encode,
        shapes.fake_like,
        derivatives.of(lambda boxes, anchors, variances: formulas.encode_boxes(boxes, anchors, *variances)),
        vmap.coding,
    ),
    "decode_boxes": Operator(
        f"Tensor deltas, Tensor anchors, {_VARIANCES}",
        "Tensor",
        shapes.check_decode,
        shapes.fake_like,
        derivatives.of(lambda deltas, anchors, variances: formulas.decode_boxes(deltas, anchors, *variances)),
        vmap.coding,
    ),
    "nms": Operator(
        'Tensor boxes, Tensor scores, float iou_threshold, str nonfinite="drop"',
        "Tensor",
        shapes.check_nms,
        shapes.fake_kept,
        None,
        vmap.refuse,
    ),
    "batched_nms": Operator(
        'Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold, str nonfinite="drop"',
        "Tensor",
        shapes.check_batched_nms,
        shapes.fake_kept,
        None,
        vmap.refuse,
    ),
    "soft_nms": Operator(
        _SOFT_NMS,
        "(Tensor keep, Tensor scores)",
        shapes.check_nms,
        shapes.fake_soft_nms,
        derivatives.none("soft_nms"),
        vmap.refuse,
    ),
    "postprocess_detections": Operator(
        _POSTPROCESS,
        "(Tensor boxes, Tensor scores, Tensor labels, Tensor anchor_idx, Tensor counts)",
        shapes.check_postprocess,
        shapes.fake_postprocess,
        derivatives.none("postprocess_detections"),
        vmap.postprocess_detections,
    ),
}


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` after the checks that the operator called `name` asks for."""
    check, names = OPERATORS[name].check, _names(name)

    def run(*arguments: Any) -> Any:
        places = {each.device.type for each in arguments if isinstance(each, Tensor)}
        if "meta" in places and len(places) > 1:  # which has no values to compute with
            raise ValueError(f"{name}: expected tensors of one device, got {', '.join(sorted(places))}")
        arguments = tuple(options.checked(name, names, arguments))
        check(*arguments)
        return function(*arguments)

    return run


def _names(name: str) -> list[str]:
    return [argument.name for argument in getattr(torch.ops.fastssd, name).default._schema.arguments]


def _too_old(feature: str, since: str) -> NotImplementedError:
    return NotImplementedError(f"fastssd: {feature} needs torch {since} or later, this is torch {torch.__version__}")


def _refuse(feature: str, since: str) -> Callable[..., Any]:
    def kernel(*_: Any) -> Any:
        raise _too_old(feature, since)

    return kernel


def _refuse_gradients(name: str) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments):
            raise _too_old(f"a gradient through torch.ops.fastssd.{name}", "2.4")
        below = torch._C._AutoDispatchBelowAutograd()  # a context manager only since torch 2.1
        try:
            return getattr(torch.ops.fastssd, name)(*arguments)
        finally:
            del below

    return kernel


def _define(library: Any, schema: str, *tags: str) -> None:
    """With those tags that this torch knows."""
    known = [getattr(torch.Tag, tag) for tag in tags if hasattr(torch.Tag, tag)]
    library.define(schema, **({"tags": known} if known else {}))


def _register_fake(library: Any, name: str, fake: Callable[..., Any]) -> None:
    if hasattr(torch.library, "register_fake"):
        torch.library.register_fake(f"fastssd::{name}", fake, lib=library)
    else:
        library.impl(name, _refuse(f"tracing torch.ops.fastssd.{name}", "2.4"), "Meta")


def _register(library: Any, name: str, operator: Operator) -> None:
    qualified = f"fastssd::{name}"
    _define(library, f"{name}({operator.arguments}) -> {operator.returns}", "pt2_compliant_tag", "flexible_layout")
    on_cpu = device.ON_CPU.get(name) or device.by_kernel(name)
    on_device = device.ON_DEVICE.get(name)
    for key in ("CPU", "MPS"):  # MPS has no float64, which formulas compare and sum in
        library.impl(name, on_cpu, key)
    # Every other device, known or not.
    library.impl(name, _checked(name, on_device) if on_device else on_cpu, "CompositeExplicitAutograd")
    _register_fake(library, name, _checked(name, operator.fake))
    if operator.derivative is not None:
        if hasattr(torch.library, "register_autograd"):
            torch.library.register_autograd(
                qualified, operator.derivative.backward, setup_context=operator.derivative.save, lib=library
            )
        else:
            library.impl(name, _refuse_gradients(name), "Autograd")
    if operator.vmap is not None:
        rule = operator.vmap
        if hasattr(torch.library, "register_vmap"):
            torch.library.register_vmap(
                qualified, lambda info, dims, *values: rule(name, info.batch_size, dims, values), lib=library
            )
        else:
            library.impl(name, _refuse(f"torch.func.vmap over torch.ops.fastssd.{name}", "2.5"), "FuncTorchBatched")


_HOLDER = "_fastssd_library"


def _register_all() -> None:
    """The operators are there as long as their torch library is held, by ``torch.ops.fastssd``: whoever imports fastssd
    anew finds what was registered before, and takes it back.
    """
    namespace = vars(torch.ops.fastssd)
    if _HOLDER in namespace:
        _take_back(namespace.pop(_HOLDER))
    library = torch.library.Library("fastssd", "DEF")
    try:
        for name, operator in OPERATORS.items():
            _register(library, name, operator)
        _define(library, "_no_gradient(Tensor grad, Tensor like, str name) -> Tensor", "pt2_compliant_tag")
        library.impl("_no_gradient", _raise_no_gradient, "CompositeExplicitAutograd")
        _register_fake(library, "_no_gradient", lambda grad, like, name: torch.empty_like(like))
    except BaseException:
        _take_back(library)
        raise
    namespace[_HOLDER] = library


def _take_back(library: Any) -> None:
    if hasattr(library, "_destroy"):
        library._destroy()
    else:  # before torch 2.4 a library ends with the last reference to it, but what was called of it stays known
        for name in (*OPERATORS, "_no_gradient"):
            vars(torch.ops.fastssd).pop(name, None)


def run(name: str, *values: Any) -> Any:
    """``torch.ops.fastssd.NAME(*values)``, or its formula where torch.func differentiates by one of `values`."""
    derivative = OPERATORS[name].derivative
    if derivative is not None and not face.compiling(torch):
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


_register_all()
if hasattr(_pytree, "_register_namedtuple"):  # so that torch.export can save a graph that returns one
    for _kind in (Matches, Targets, MultiboxLoss, Detections):
        _pytree._register_namedtuple(_kind, serialized_type_name=f"fastssd.ops.{_kind.__name__}")
