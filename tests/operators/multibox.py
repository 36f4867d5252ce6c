"""The classification loss of SSD as the tests know it (tests/operators/__init__.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastssd import ops
from fastssd.backends import active_backend
from tests.operators._inputs import DTYPES, LABELS, LOGITS, PAST_INT64, Case, Examples, bad, case, strided

EXAMPLES = {
    "multibox_cross_entropy": Examples(
        samples=[
            {"logits": LOGITS, "labels": LABELS, "neg_pos_ratio": 2.5, "min_negatives": 4},
            {"logits": LOGITS[0], "labels": LABELS[0].astype(np.int32), "neg_pos_ratio": 1.0, "min_negatives": 1},
            {"logits": LOGITS.astype(np.float16), "labels": LABELS},
        ],
        bad=[
            bad("labels", ValueError, labels=LABELS[:1]),
            bad("labels", TypeError, labels=LABELS * 1.0),
            bad(r"labels\[0, 1\]", ValueError, logits=LOGITS[..., :3]),
            bad(r"labels\[0, 1\]", ValueError, labels=LABELS * 2),
            bad(r"labels\[0, 4\]", ValueError, labels=LABELS - 1),
            bad(r"labels", ValueError, labels=LABELS + 1),
            bad("labels", ValueError, logits=LOGITS[0], labels=PAST_INT64),
            bad("logits", ValueError, logits=LOGITS[..., :0]),
            bad("logits", ValueError, logits=LOGITS[0, 0], labels=LABELS[0, 0]),
            bad("neg_pos_ratio", ValueError, neg_pos_ratio=np.nan),
            bad("min_negatives", ValueError, min_negatives=-1),
        ],
        rare=[{"logits": LOGITS[0], "labels": PAST_INT64 // 2**63, "neg_pos_ratio": 1}],
        gradients=("logits",),
        mapped=("logits", "labels"),
        rounded=True,
    ),
    # Autograd calls it; it has no public function.
    "multibox_cross_entropy_gradient": Examples(
        samples=[
            {"scale": np.array(0.3), "logits": LOGITS, "labels": LABELS, "selected": LABELS > 0},
            {"scale": np.array(2.0), "logits": LOGITS[0], "labels": LABELS[0], "selected": LABELS[0] > 0},
        ],
        bad=[
            bad(r"labels\[0, 1\]", ValueError, labels=LABELS * 2),
            bad("selected", ValueError, selected=LABELS[:1] > 0),
            bad("selected", TypeError, selected=LABELS),
        ],
        mapped=("scale", "logits", "labels", "selected"),
        rounded=True,
    ),
}


def gradient(logits: Any, labels: Any) -> Any:
    x, y, out = (np.ascontiguousarray(array) for array in (logits, labels, np.empty_like(logits)))
    active_backend().multibox_cross_entropy_gradient(x, y, y > 0, 0.3, out)
    return out


def cases(rng: np.random.Generator) -> Iterator[Case]:
    def both(tag: str, logits: Any, labels: Any, **options: Any) -> Iterator[Case]:
        yield case("multibox_cross_entropy", tag, logits, labels, **options)
        if logits.dtype.name in DTYPES[:2] and logits.ndim == 3:
            yield Case("multibox_cross_entropy_gradient", tag, (logits, labels), {}, gradient)

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
        yield from both(f"ratio {ratio}", random, some, neg_pos_ratio=ratio)  # some image has no positive
    yield from both("only background", random[..., :1], labels * 0, min_negatives=3)
    yield from both("no anchors", random[:, :0], labels[:, :0])
    yield from both("no images", random[:0], labels[:0])
    yield from both("one image", random[0], labels[0])
    yield from both("all ignored", random, labels * 0 - 1, min_negatives=3)
    yield from both("non-contiguous", strided(random), labels.T.copy().T)


@pytest.mark.parametrize(("columns", "bias"), [(2, 0), (4, 9), (40, 0), (40, 9)])
def test_multibox_is_mining_and_cross_entropy(columns, bias):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(3, 500, columns)))
    logits[..., 0] += bias
    logits.requires_grad_()
    labels = torch.from_numpy(rng.integers(1, columns, (3, 500)) * (rng.random((3, 500)) < [[0.0], [0.02], [0.5]]))
    labels[:, ::9] = -1
    loss, selected = ops.multibox_cross_entropy(logits, labels, neg_pos_ratio=2, min_negatives=4)
    of_background = (-logits.detach().log_softmax(-1)[..., 0]).masked_fill(labels < 0, -torch.inf)
    mined = ops.mine_hard_negatives(of_background, labels > 0, neg_pos_ratio=2, min_negatives=4)
    assert torch.equal(selected, mined | (labels > 0))
    ref = torch.nn.functional.cross_entropy(logits[selected], labels[selected], reduction="sum")
    torch.testing.assert_close(loss, ref)
    refs, comps = (torch.autograd.grad(3 * value, logits)[0] for value in (ref, loss))
    torch.testing.assert_close(comps, refs)


def test_multibox_nan_logits_reach_the_loss():
    for place in ((1, 5, 0), (1, 5, 3), (0, 1, 2)):  # in a negative's background, in its foreground, in a positive
        logits = LOGITS.copy()
        logits[place] = np.nan
        loss, selected = ops.multibox_cross_entropy(logits, LABELS, min_negatives=1)
        assert selected[place[:2]]
        assert np.isnan(loss)


def test_multibox_gradient_is_taken_once_and_in_the_dtype_of_the_logits():
    torch = pytest.importorskip("torch")
    logits = torch.from_numpy(LOGITS.copy()).requires_grad_()
    loss, selected = ops.multibox_cross_entropy(logits, LABELS)
    assert not selected.requires_grad
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()
    half = logits.detach().bfloat16().requires_grad_()
    loss = ops.multibox_cross_entropy(half, LABELS).loss
    loss.backward()
    assert (loss.dtype, half.grad.dtype) == (torch.float32, torch.bfloat16)
