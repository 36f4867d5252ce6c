"""The sigmoid focal loss of RetinaNet and FCOS, its value and its gradient in one pass over the logits.

Nearly every logit is a negative, so all are taken as one, with holes where they are not; the few positives are added.
The pass goes in pieces that stay in the processor's cache, and needs no memory besides the gradient.

Source: arXiv:1708.02002, equation 5, with gamma 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_PIECE = 1 << 16  # logits; five such arrays fit the second level cache


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
    loss: Tensor = _FocalLoss.apply(logits, positives, ignored, weights, alpha, torch.is_grad_enabled())
    return loss


class _FocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        positives: tuple[Tensor, Tensor, Tensor],
        ignored: tuple[Tensor, Tensor],
        weights: Sequence[float],
        alpha: float,
        recording: bool,
    ) -> Tensor:
        batch, anchors, columns = logits.shape
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        wanted = recording and ctx.needs_input_grad[0]
        gradient = torch.empty(logits.shape, dtype=dtype, device=logits.device) if wanted else None
        image, anchor, column = positives
        rows = ignored[1][:, None] * columns + torch.arange(columns, device=logits.device)
        total = logits.new_zeros((), dtype=torch.float64)
        for i in range(batch):
            holes = torch.cat([(anchor * columns + column)[image == i], rows[ignored[0] == i].flatten()])
            total += (
                (1 - alpha)
                * weights[i]
                * _negatives(
                    logits[i].reshape(-1),
                    holes.sort().values,
                    dtype,
                    None if gradient is None else gradient[i].view(-1),
                    (1 - alpha) * weights[i],
                )
            )
        # f(-x) for a positive is what f(x) is for a negative.
        x = -logits[positives].to(dtype)  # [P]
        scale = alpha * torch.tensor(weights, dtype=dtype, device=logits.device)[image]
        share, softplus = x.sigmoid(), F.softplus(x)
        total += (scale * share.square() * softplus).sum()
        if gradient is not None:
            gradient[positives] = -scale * share.square() * (2 * (1 - share) * softplus + share)
            ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad).to(ctx.dtype), None, None, None, None, None


def _negatives(logits: Tensor, holes: Tensor, dtype: torch.dtype, gradient: Tensor | None, scale: float) -> Tensor:
    """The sum of ``p**2 * softplus(x)`` over logits [N] but for the holes, float64 []; writes `scale` times its
    derivative ``p**2 * (2 * (1 - p) * softplus(x) + p)`` to `gradient` [N]."""
    size = len(logits)
    piece = _PIECE if logits.device.type == "cpu" else max(size, 1)
    starts = range(0, size, piece)
    edges = torch.searchsorted(holes, torch.tensor([*starts, size], device=holes.device)).tolist()
    work = torch.empty(4, min(piece, size), dtype=dtype, device=logits.device)
    sums = torch.empty(len(starts), dtype=dtype, device=logits.device)
    for i, start in enumerate(starts):
        x = logits[start : start + piece]
        copy, p, s, t = work[:, : len(x)]
        if edges[i] < edges[i + 1] or x.dtype != dtype:
            x = copy.copy_(x)
            x[holes[edges[i] : edges[i + 1]] - start] = -torch.inf  # whose loss and derivative are 0
        torch.abs(x, out=s)
        s.neg_().exp_().log1p_()
        s += torch.clamp(x, min=0, out=p)  # softplus
        torch.sigmoid(x, out=p)
        torch.mul(p, p, out=t)
        torch.dot(t, s, out=sums[i])
        if gradient is not None:
            out = gradient[start : start + piece]
            s.addcmul_(p, s, value=-1)
            torch.add(p, s, alpha=2, out=out)
            out.mul_(t).mul_(scale)
    return sums.sum(dtype=torch.float64)
