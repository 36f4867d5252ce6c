"""The operators under vmap: the mapped dimension becomes a leading one, for every operator computes a batch at once.

A rule gets the operator's name, the size of the mapped dimension, its place in each argument (None where it has none)
and the arguments, and returns the result and the places of the dimension in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssd.ops import _formulas as formulas

Places = tuple[int | None, ...]
Values = tuple[Any, ...]


def _run(name: str, *values: Any) -> Any:
    from fastssd.ops import _library  # which imports this module

    return _library.run(name, *values)


def _in_front(value: Any, place: int | None, size: int) -> Any:
    """`value` with the mapped dimension in front; repeated along it where it has none."""
    if not isinstance(value, Tensor):
        return value
    return value.expand(size, *value.shape) if place is None else value.movedim(place, 0)


def _all_in_front(size: int, places: Places, values: Values) -> list[Any]:
    return [_in_front(value, place, size) for value, place in zip(values, places, strict=True)]


def leading(name: str, size: int, places: Places, values: Values) -> tuple[Any, Any]:
    return _run(name, *_all_in_front(size, places, values)), 0


def pairwise(name: str, size: int, places: Places, values: Values) -> tuple[Any, Any]:
    """Leading dimensions broadcast, so that what is not mapped is not repeated."""
    examples = [value.ndim - (place is not None) for value, place in zip(values, places, strict=True)]
    fronted = []
    for value, place, dims in zip(values, places, examples, strict=True):
        if place is not None:
            value = value.movedim(place, 0)
            value = value.reshape(size, *(1,) * (max(examples) - dims), *value.shape[1:])
        fronted.append(value)
    return _run(name, *fronted), 0


def coding(name: str, size: int, places: Places, values: Values) -> tuple[Any, Any]:
    """Mapped anchors [V, A, 4] are one long list of V * A anchors."""
    rows, anchors, *options = values
    if places[1] is None:
        return _run(name, rows.movedim(places[0], 0), anchors, *options), 0
    rows, anchors = _in_front(rows, places[0], size), anchors.movedim(places[1], 0)
    rows = rows.movedim(0, -3)  # [..., V, A, 4]
    found = _run(name, rows.flatten(-3, -2), anchors.flatten(0, 1), *options)
    return found.unflatten(-2, (size, -1) if anchors.shape[1] else (size, 0)).movedim(-3, 0), 0


def matching(name: str, size: int, places: Places, values: Values) -> tuple[Any, Any]:
    """Pictures are mapped over, the anchors are theirs all."""
    if places[0] is not None:
        raise NotImplementedError(f"fastssd.{name} under vmap: all pictures need the same anchors; map gt_boxes only")
    anchors, *truth = values
    truth = _all_in_front(size, places[1:], tuple(truth))
    if truth[0].ndim == 3:  # one picture an example
        return _run(name, anchors, *truth), (0,) * _outputs(name)
    batch = truth[0].shape[1]
    truth = [value.flatten(0, 1) if isinstance(value, Tensor) else value for value in truth]
    found = _run(name, anchors, *truth)
    return tuple(each.unflatten(0, (size, batch)) for each in found), (0,) * len(found)


def _outputs(name: str) -> int:
    return len(getattr(torch.ops.fastssd, name).default._schema.returns)


def mining(name: str, size: int, places: Places, values: Values) -> tuple[Any, Any]:
    loss, positive, *options = _all_in_front(size, places, values)
    rows, mask = loss.reshape(-1, loss.shape[-1]), positive.reshape(-1, loss.shape[-1])
    return _run(name, rows, mask, *options).reshape(loss.shape), 0


def multibox_cross_entropy(name: str, size: int, places: Places, values: Values) -> tuple[Any, Any]:
    """A sum for each example, by the formula: the kernel sums over all pictures."""
    from fastssd.ops._device import float_dtype  # which imports this module's neighbours

    logits, labels, *options = _all_in_front(size, places, values)
    ratio, least = (*options, 3.0, 0)[:2] if len(options) != 1 else (options[0], 0)
    dtype = float_dtype(logits)
    losses, selected = formulas.multibox_losses(logits.to(dtype), labels, ratio, least)
    return (losses.reshape(size, -1).sum(-1).to(dtype), selected), (0, 0)


def multibox_cross_entropy_gradient(name: str, size: int, places: Places, values: Values) -> tuple[Any, Any]:
    scale, logits, labels, selected = _all_in_front(size, places, values)
    scale = scale.reshape(size, *(1,) * (logits.ndim - 1))
    return formulas.multibox_cross_entropy_gradient(scale, logits, labels, selected), 0


def postprocess_detections(name: str, size: int, places: Places, values: Values) -> tuple[Any, Any]:
    if places[2] is not None:
        raise NotImplementedError(f"fastssd.{name} under vmap: all pictures need the same anchors")
    logits, deltas = (_in_front(values[i], places[i], size) for i in (0, 1))
    lead = logits.shape[:-2]
    found = _run(name, logits.flatten(0, -3), deltas.flatten(0, -3), *values[2:])
    return tuple(each.unflatten(0, lead) for each in found), (0,) * len(found)


def refuse(name: str, size: int, places: Places, values: Values) -> tuple[Any, Any]:
    raise NotImplementedError(
        f"fastssd.{name} under vmap: how many boxes are kept differs from example to example; use batched_nms with the "
        "example as the group, or postprocess_detections, whose outputs are padded"
    )
