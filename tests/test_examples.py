"""Every example runs; one whose host is missing says so and exits with status 0."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastssd import ops

pytest.importorskip("torch")

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    environment = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("skipped: needs"):
        pytest.skip(done.stdout.strip())
    assert done.stdout


def test_yolo_example_is_nms_of_each_image_and_class():
    run = runpy.run_path(str(next(path for path in EXAMPLES if path.stem == "yolo_nms")))["non_max_suppression"]
    rng = np.random.default_rng(1)
    prediction = np.concatenate([rng.uniform(20, 60, (2, 4, 300)), rng.random((2, 3, 300))], 1).astype(np.float32)
    for found, (*box, first, second, third) in zip(run(prediction, 0.5, 0.4, 1000), prediction, strict=True):
        scores = np.stack([first, second, third])
        cx, cy, w, h = box
        boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
        expected = []
        for label in range(3):
            rows = np.flatnonzero((scores.argmax(0) == label) & (scores.max(0) > 0.5))
            kept = rows[ops.nms(boxes[rows], scores[label, rows], 0.4)]
            expected += [(*boxes[i], scores[label, i], label) for i in kept]
        expected.sort(key=lambda row: -row[4])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
