"""Hard negative mining as the tests know it (tests/operators/__init__.py)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastssd import ops
from tests.operators._inputs import DTYPES, LABELS, LOGITS, SCORES, Case, Examples, bad, case

LOSS, POSITIVE = LOGITS[..., 1], LABELS > 0
EXAMPLES = {
    "mine_hard_negatives": Examples(
        samples=[
            {"loss": LOSS, "positive": POSITIVE, "neg_pos_ratio": 2.5, "min_negatives": 4},
            {"loss": SCORES, "positive": SCORES > 0.9, "neg_pos_ratio": 1.0, "min_negatives": 1},
            {"loss": SCORES.astype(np.float32), "positive": SCORES > 0.9},
        ],
        bad=[
            bad("positive", TypeError, positive=LOSS),
            bad("positive", TypeError, positive=POSITIVE.view(np.uint8)),
            bad("positive", ValueError, positive=POSITIVE[:, :3]),
            bad("neg_pos_ratio", ValueError, neg_pos_ratio=-1),
            bad("neg_pos_ratio", TypeError, neg_pos_ratio=b"3"),
            bad("min_negatives", TypeError, min_negatives=0.5),
            bad("min_negatives", TypeError, min_negatives=True),
            bad("min_negatives", ValueError, min_negatives=2**63),
        ],
        rare=[{"neg_pos_ratio": np.float32(0.5), "min_negatives": np.int8(5)}, {"neg_pos_ratio": np.inf}],
        mapped=("loss", "positive"),
    ),
}


def cases(rng: np.random.Generator) -> Iterator[Case]:
    name = "mine_hard_negatives"
    for dtype in DTYPES[:3]:
        for tag, steps in (("typical", 0), ("ties", 5), ("equal", 1)):
            loss = rng.random((4, 700)) * 5
            loss = (np.round(loss * steps) / steps if steps else loss).astype(dtype)
            positive = rng.random(loss.shape) < np.array([[0.01], [0.0], [0.2], [0.9]])
            for ratio, least in ((3.0, 0), (0.0, 5), (2.5, 1), (1e9, 0), (0.3, 10**9)):
                options = {"neg_pos_ratio": ratio, "min_negatives": least}
                yield case(name, f"{tag} {dtype} ratio {ratio} least {least}", loss, positive, **options)
    loss = rng.normal(size=(3, 300))
    positive = rng.random(loss.shape) < 0.05
    special = loss.copy()
    special[:, ::7], special[:, 1::9], special[:, 2::50], special[1] = -np.inf, np.inf, np.nan, -np.inf
    yield case(name, "nonfinite", special, positive)
    yield case(name, "signed zeros", loss * 0, positive)
    yield case(name, "non-contiguous", loss.T[::3].T, positive.T[::3].T)
    some = positive & [[True], [False], [True]]
    for ratio in (np.inf, 1e308, 5e-324, 0.0):
        for least in (0, 4):
            options = {"neg_pos_ratio": ratio, "min_negatives": least}
            yield case(name, f"ratio {ratio} least {least}", loss, some, **options)
    yield case(name, "empty", loss[:, :0], positive[:, :0])
    yield case(name, "no images", loss[:0], positive[:0])
    yield case(name, "one image", loss[0], positive[0])


def test_mining_by_hand():
    loss = np.array([5.0, 1.0, 9.0, 3.0, 3.0, 2.0])
    positive = np.array([True, False, False, False, False, False])
    assert np.flatnonzero(ops.mine_hard_negatives(loss, positive, neg_pos_ratio=2)).tolist() == [2, 3]
    assert np.flatnonzero(ops.mine_hard_negatives(loss, positive & False)).tolist() == []
    assert np.flatnonzero(ops.mine_hard_negatives(loss, positive & False, min_negatives=1)).tolist() == [2]
