"""Run a host's own tests twice, as they are and routed through fastssd.compat, and list what comes out otherwise.

    python tests/host_suites.py HOST PATH_TO_ITS_CHECKOUT [pytest's arguments, in place of the files below]

HOST is torchvision, detectron2, mmdet or powerboxes. The host itself must be installed, or, where it is Python only,
importable from the checkout. detectron2's and mmcv's compiled operators are replaced by stand-ins where they are not
there; what calls one is skipped, both times. The exit status is 1 where a test that the host passes alone does not
pass routed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types
from collections import Counter
from pathlib import Path
from typing import Any

# What is run of a checkout, and by which names.
SUITES: dict[str, list[str]] = {
    "torchvision": ["test/test_ops.py", "-k", "NMS or Iou or IoU or Box or box"],
    "detectron2": [
        "tests/structures/test_boxes.py",
        "tests/modeling/test_matcher.py",
        "tests/modeling/test_box2box_transform.py",
        "tests/layers/test_nms.py",
    ],
    "mmdet": ["tests/test_models/test_task_modules/test_assigners"],
    "powerboxes": ["bindings/tests", "--ignore-glob=*test_draw.py"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", choices=SUITES)
    parser.add_argument("checkout", type=Path)
    options, tests = parser.parse_known_args()
    checkout = options.checkout.resolve()
    tests = [
        str(checkout / each) if (checkout / each.split("::")[0]).exists() else each
        for each in tests or SUITES[options.host]
    ]
    plain, routed = (run(options.host, checkout, tests, routed) for routed in (False, True))
    for name, outcomes in (("alone", plain), ("routed", routed)):
        counts = Counter(outcome for outcome, _ in outcomes.values())
        print(
            f"{options.host} {name}: {len(outcomes)} tests, " + ", ".join(f"{n} {o}" for o, n in counts.most_common())
        )
    worse = 0
    for test in sorted({*plain, *routed}):
        (before, _), (after, why) = (outcomes.get(test, ("missing", "")) for outcomes in (plain, routed))
        if before != after:
            worse += before == "passed"
            print(f"{test}: {before} alone, {after} routed: {why}")
    return int(worse > 0 or not plain)


def run(host: str, checkout: Path, tests: list[str], routed: bool) -> dict[str, tuple[str, str]]:
    """(outcome, last line of the error) of every test, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        here = Path(__file__).resolve()
        environment = os.environ | {
            "FASTSSD_HOST": host,
            "FASTSSD_ROUTED": str(int(routed)),
            "FASTSSD_REPORT": str(report),
            "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parent.parent)]),
            "PYTHONSAFEPATH": "1",  # the installed host, not the sources beside its tests
        }
        command = [sys.executable, "-m", "pytest", "-p", here.stem, "-p", "no:cacheprovider", "-q", "--tb=no"]
        command += ["-W", "ignore", "--rootdir", str(checkout), *tests]
        found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if found.returncode not in (0, 1):
            print(found.stdout[-3000:], found.stderr[-3000:], sep="\n", file=sys.stderr)
        return json.loads(report.read_text()) if report.exists() else {}


# --- the plugin, in the process of the tests

_outcomes: dict[str, tuple[str, str]] = {}
_kept: list[Any] = []


def pytest_configure(config: Any) -> None:
    if "FASTSSD_HOST" in os.environ:
        host = os.environ["FASTSSD_HOST"]
        _stand_ins(host)
        if os.environ["FASTSSD_ROUTED"] == "1":
            _kept.append(globals()[f"_route_{host}"]())


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        lines = str(report.longrepr).strip().splitlines()
        _outcomes[report.nodeid] = report.outcome, lines[-1] if lines and report.outcome == "failed" else ""


def pytest_sessionfinish() -> None:
    if "FASTSSD_REPORT" in os.environ:
        Path(os.environ["FASTSSD_REPORT"]).write_text(json.dumps(_outcomes))


class _NotCompiled(types.ModuleType):
    """A module that has every function; calling one skips the test."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        import pytest

        return lambda *_, **__: pytest.skip(f"{self.__name__}.{name} is not compiled")


def _stand_ins(host: str) -> None:
    for package, module in {"detectron2": [("detectron2", "_C")], "mmdet": [("mmcv", "_ext")]}.get(host, []):
        if importlib.util.find_spec(package) and not importlib.util.find_spec(f"{package}.{module}"):
            sys.modules[f"{package}.{module}"] = _NotCompiled(f"{package}.{module}")


def _route_torchvision() -> Any:
    from fastssd.compat import torchvision

    return torchvision.patch()


def _route_detectron2() -> Any:
    from fastssd.compat import detectron2

    others = {"detectron2.modeling.box_regression": [detectron2.Box2BoxTransform]}
    return detectron2.patch(), _also(["detectron2"], others)


def _route_mmdet() -> Any:
    from fastssd.compat import mmdet

    mmdet.register()
    others = {
        "mmdet.models.task_modules.assigners.max_iou_assigner": [mmdet.MaxIoUAssigner],
        "mmdet.models.task_modules.assigners.iou2d_calculator": [mmdet.BboxOverlaps2D],
    }
    return mmdet.patch(), _also(["mmdet"], others)


def _route_powerboxes() -> Any:
    """Its names on ``fastssd.ops``; what it does not accept it is left to refuse."""
    import numpy as np

    from fastssd import ops

    def alike(*boxes: Any) -> None:
        if not all(isinstance(each, np.ndarray) and each.dtype == boxes[0].dtype for each in boxes):
            raise TypeError
        if boxes[0].dtype == np.float16:
            raise TypeError

    def distance(name: str, overlap: Any) -> Any:
        def function(boxes1: Any, boxes2: Any) -> Any:
            alike(boxes1, boxes2)
            return 1 - overlap(boxes1, boxes2).astype(np.float64)

        function.__name__ = name
        return function

    def boxes_areas(boxes: Any) -> Any:
        alike(boxes)
        return ops.box_area(boxes).astype(np.float64)

    def box_convert(boxes: Any, in_fmt: str, out_fmt: str) -> Any:
        alike(boxes)
        return ops.box_convert(boxes, in_fmt, out_fmt).astype(boxes.dtype)

    def kept(name: str) -> Any:
        def function(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float) -> Any:
            alike(boxes)
            if not isinstance(scores, np.ndarray):
                raise TypeError
            good = np.flatnonzero(scores > score_threshold)
            return good[ops.nms(boxes[good], scores[good], iou_threshold)].astype(np.uint64)

        function.__name__ = name
        return function

    functions = [boxes_areas, box_convert, kept("nms"), kept("rtree_nms")]
    for name, overlap in (
        ("iou_distance", ops.box_iou),
        ("parallel_iou_distance", ops.box_iou),
        ("giou_distance", ops.generalized_box_iou),
        ("parallel_giou_distance", ops.generalized_box_iou),
        ("diou_distance", ops.distance_box_iou),
        ("ciou_distance", ops.complete_box_iou),
    ):
        functions.append(distance(name, overlap))
    return _also(["powerboxes"], {"powerboxes": functions})


def _also(packages: list[str], ours: dict[str, list[Any]]) -> Any:
    from fastssd.compat._routes import Host

    return Host(f"{__name__}:_", packages, ours).patch()


if __name__ == "__main__":
    sys.exit(main())
