"""The sigmoid focal loss of RetinaNet and FCOS: value and gradient take one pass over the logits each.

Nearly every logit is a negative. So all are treated as negatives, except for holes at the others; the few positives
are added. The pass works on pieces that fit the processor's cache, and needs no memory besides the gradient.

Source: arXiv:1708.02002, equation 5, with gamma 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_MODERATE = 4.0  # up to here 1 - p has enough bits for a logarithm
_PIECE = 1 << 16  # logits; three such arrays fit the second level cache


def focal_loss(
    logits: Tensor,
    positives: tuple[Tensor, Tensor, Tensor],
    ignored: tuple[Tensor, Tensor],
    weights: Sequence[float],
    alpha: float = 0.25,
) -> Tensor:
    """The weighted sum of ``sigmoid_focal_loss(logits, targets, alpha, gamma=2)``.

    Args:
        logits: [B, A, C].
        positives: image, anchor and column, [P] each, where the target is 1; it is 0 elsewhere. Each place once.
        ignored: image and anchor, [I] each, of the rows that do not count.
        weights: of each image.

    Returns:
        [], in the dtype of the logits, float32 at least. Differentiable once.
    """
    with torch.autocast(logits.device.type, enabled=False):  # half precision is not enough for the sums
        loss: Tensor = _FocalLoss.apply(logits, positives, ignored, weights, alpha)
    return loss


class _FocalLoss(torch.autograd.Function):
    """Forward only sums; backward computes its inputs again, which costs less than memory for all logits twice."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        positives: tuple[Tensor, Tensor, Tensor],
        ignored: tuple[Tensor, Tensor],
        weights: Sequence[float],
        alpha: float,
    ) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.others = positives, ignored, weights, alpha
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for image, holes in enumerate(_holes(logits, positives, ignored)):
            total += (1 - alpha) * weights[image] * _sum_negatives(logits[image].reshape(-1), holes, dtype)
        scale, share, softplus = _positives(logits, positives, weights, alpha, dtype)
        return (total + (scale * share.square() * softplus).sum()).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (logits,) = ctx.saved_tensors
        positives, ignored, weights, alpha = ctx.others
        gradient = torch.empty(logits.shape, dtype=grad.dtype, device=logits.device)
        for image, holes in enumerate(_holes(logits, positives, ignored)):
            factor = (1 - alpha) * weights[image] * grad
            _derive_negatives(logits[image].reshape(-1), holes, factor, gradient[image].view(-1))
        scale, share, softplus = _positives(logits, positives, weights, alpha, grad.dtype)
        gradient[positives] = -grad * scale * share.square() * (2 * (1 - share) * softplus + share)
        return gradient.to(logits.dtype), None, None, None, None


def _holes(logits: Tensor, positives: tuple[Tensor, ...], ignored: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
    """For each image the places in its A * C logits that are not negatives, ascending."""
    image, anchor, column = positives
    columns = logits.shape[2]
    rows = ignored[1][:, None] * columns + torch.arange(columns, device=logits.device)
    for i in range(len(logits)):
        yield torch.cat([(anchor * columns + column)[image == i], rows[ignored[0] == i].flatten()]).sort().values


def _positives(
    logits: Tensor, positives: tuple[Tensor, ...], weights: Sequence[float], alpha: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each positive its weight, 1 - p, and -log p: what p and -log(1 - p) are for a negative."""
    x = -logits[positives].to(dtype)
    scale = alpha * torch.tensor(weights, dtype=dtype, device=logits.device)[positives[0]]
    return scale, x.sigmoid(), F.softplus(x)


def _sum_negatives(logits: Tensor, holes: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of ``p**2 * softplus(x)`` over logits [N] but for the holes: float64 []."""
    sums = []
    for _, p, softplus in _pieces(logits, holes, dtype):
        sums.append(torch.dot(p.mul_(p), softplus))
    return torch.stack(sums).sum(dtype=torch.float64) if sums else logits.new_zeros((), dtype=torch.float64)


def _derive_negatives(logits: Tensor, holes: Tensor, factor: Tensor, out: Tensor) -> None:
    """`factor` times the derivative, ``p**2 * (2 * (1 - p) * softplus(x) + p)``, to `out` [N]; 0 in the holes."""
    for start, p, softplus in _pieces(logits, holes, out.dtype):
        piece = out[start : start + len(p)]
        softplus.addcmul_(p, softplus, value=-1)
        torch.add(p, softplus, alpha=2, out=piece)
        piece.mul_(p.mul_(p)).mul_(factor)


def _pieces(logits: Tensor, holes: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Start, ``p`` and ``softplus(x)`` of each piece of logits [N], in memory that the next piece overwrites."""
    size = len(logits)
    length = _PIECE if logits.device.type == "cpu" else max(size, 1)
    edges = torch.searchsorted(holes, torch.arange(0, size + length, length, device=holes.device)).tolist()
    memory = torch.empty(3, min(length, size), dtype=dtype, device=logits.device)
    for i, start in enumerate(range(0, size, length)):
        x = logits[start : start + length]
        copy, p, softplus = memory[:, : len(x)]
        if edges[i] < edges[i + 1] or x.dtype != dtype:
            x = copy.copy_(x)
            x[holes[edges[i] : edges[i + 1]] - start] = -torch.inf  # for which both are 0
        if x.amax() <= _MODERATE:  # saves an exponential
            torch.sigmoid(x, out=p)
            torch.neg(p, out=softplus).log1p_().neg_()
        else:
            torch.abs(x, out=softplus)
            softplus.neg_().exp_().log1p_()
            softplus += torch.clamp(x, min=0, out=p)
            torch.sigmoid(x, out=p)
        yield start, p, softplus
