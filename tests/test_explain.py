"""The explanations agree with the operators, and any input can be drawn."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastssd.explain.matching import Outcome, matching_figure, matching_steps_figure, trace_matching
from fastssd.explain.nms import nms_figure, trace_nms
from fastssd.ops import box_iou, grid_anchors, match_anchors, nms

Image = pytest.importorskip("PIL.Image")


def random_boxes(rng: np.random.Generator, count: int, *, coarse: bool) -> np.ndarray:
    """Boxes that overlap a lot; coarse ones also tie in IoU and score."""
    corners = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (count, 2))], axis=1)
    return (boxes // 10 * 10 + [0, 0, 10, 10] if coarse else boxes).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("coarse", [False, True])
def test_trace_nms_is_nms(seed: int, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 40, coarse=coarse)
    scores = rng.integers(0, 10, 40) / 10 if coarse else rng.uniform(size=40)
    steps = trace_nms(boxes, scores, 0.4)
    assert [step.kept for step in steps] == nms(boxes, scores, 0.4).tolist()
    fate = [step.kept for step in steps] + [victim.box for step in steps for victim in step.victims]
    assert sorted(fate) == list(range(40))
    for step in steps:
        for victim in step.victims:
            assert victim.iou > 0.4
            assert victim.iou == pytest.approx(box_iou(boxes[[step.kept]], boxes[[victim.box]])[0, 0], rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("thresholds", [(0.5, None), (0.5, 0.3)])
def test_trace_matching_is_match_anchors(seed: int, coarse: bool, thresholds: tuple[float, float | None]) -> None:
    rng = np.random.default_rng(seed)
    anchors, gt_boxes = random_boxes(rng, 50, coarse=coarse), random_boxes(rng, seed, coarse=coarse)
    high, low = thresholds
    trace = trace_matching(anchors, gt_boxes, iou_threshold=high, background_threshold=low)
    matches = match_anchors(anchors, gt_boxes, iou_threshold=high, background_threshold=low)
    assert trace.gt_idx.tolist() == matches.gt_idx.tolist()
    assert sorted(step.gt for step in trace.forced) == list(range(len(gt_boxes)))
    for outcome, index in ((Outcome.IGNORED, trace.gt_idx == -2), (Outcome.BACKGROUND, trace.gt_idx == -1)):
        assert ((trace.outcome == outcome) == index).all()


def test_figures_are_drawn_without_pyplot(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    from fastssd.explain.style import save_figure

    pyplot_before = "matplotlib.pyplot" in sys.modules
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    boxes = random_boxes(rng, 30, coarse=False) / 2
    grids = [(4, 4), (1, 1)]
    anchors = grid_anchors(grids, [(0.3,), (0.8,)], image_size=(40, 60))
    figures = {
        "nms": nms_figure(boxes, rng.uniform(size=30), 0.3, image=image),
        "no boxes": nms_figure(np.empty((0, 4)), np.empty(0), 0.3),
        "steps": matching_steps_figure(boxes[:5], boxes[5:7], background_threshold=0.3),
        "anchors": matching_figure(image, anchors, boxes[:3], grids=grids),
        "no ground truth": matching_figure(image, anchors, np.empty((0, 4)), grids=grids),
    }
    for name, figure in figures.items():
        save_figure(figure, tmp_path / f"{name}.png")
        assert Image.open(tmp_path / f"{name}.png").size[0] > 200
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_before
    with pytest.raises(ValueError, match="grids"):
        matching_figure(image, anchors, boxes, grids=[(5, 5)])


class TestDrawDetections:
    EDGES = (
        [0, 0, 1, 1],
        [-5, -5, 500, 500],
        [np.nan, 0, 1, 1],
        [1e30, 0, 2e30, 1],
        [-np.inf, 0, np.inf, 9],
        [5, 5, 2, 2],
        [30, 30, 30, 30],
    )

    @pytest.mark.parametrize("size", [(1, 1), (2, 200), (200, 2), (30, 30), (480, 640)])
    def test_any_box_on_any_image(self, size: tuple[int, int]) -> None:
        from fastssd.explain.draw import draw_detections

        image = np.zeros((*size, 3), np.uint8)
        names = ["a" * 100, "two\nlines", "кровь", ""]
        drawn = draw_detections(image, self.EDGES, range(1, 8), np.linspace(1, 0, 7), names)
        assert drawn.size == size[::-1]
        assert np.asarray(drawn).any()
        assert not image.any()

    def test_invisible_boxes_are_not_drawn(self) -> None:
        from fastssd.explain.draw import draw_detections

        image = np.full((50, 60, 3), 77, np.uint8)
        for boxes in ([], [[np.nan] * 4], [[70, 5, 90, 9]], [[5, -9, 9, -2]]):
            assert (np.asarray(draw_detections(image, boxes, [1] * len(boxes))) == image).all()

    def test_box_lies_where_it_should(self) -> None:
        from fastssd.explain.draw import draw_detections

        image = np.full((100, 100, 3), 128, np.uint8)
        changed = (np.asarray(draw_detections(image, [[20, 30, 60, 80]])) != image).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert (rows[0], rows[-1], columns[0], columns[-1]) == (29, 80, 19, 60)  # and its thin edge
        assert not changed[35:75, 25:55].any()

    def test_tags_keep_clear_of_each_other(self) -> None:
        from fastssd.explain import draw

        font = draw._font(14, "")
        taken: list[draw._Rect] = []
        for y in (0, 5, 10, 200):
            box = draw._Rect(100, 100 + y, 300, 250 + y)
            placed = draw._place_tag("cell 0.50", box, (640, 480), font, taken)
            assert placed is not None
            assert not any(placed[0].overlap(other) for other in taken)
            taken.append(placed[0])

    def test_small_image_is_enlarged_on_request(self) -> None:
        from fastssd.explain.draw import draw_detections

        assert draw_detections(np.zeros((30, 60, 3), np.uint8), [[1, 2, 9, 8]], min_size=300).size == (300, 150)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ((np.zeros((5, 5, 3), np.float32), []), "image"),
            ((np.zeros((5, 5), np.uint8), []), "image"),
            ((np.zeros((5, 5, 3), np.uint8), [[1, 2, 3]]), "boxes"),
            ((np.zeros((5, 5, 3), np.uint8), [[1, 2, 3, 4]], [1, 2]), "labels"),
            ((np.zeros((5, 5, 3), np.uint8), [[1, 2, 3, 4]], None, []), "scores"),
        ],
    )
    def test_bad_input_is_named(self, arguments: tuple, named: str) -> None:
        from fastssd.explain.draw import draw_detections

        with pytest.raises(ValueError, match=named):
            draw_detections(*arguments)

    def test_grid(self) -> None:
        from fastssd.explain.draw import picture_grid

        pictures = [Image.new("RGB", (10, 20)), Image.new("RGB", (30, 10)), Image.new("RGB", (5, 5))]
        assert picture_grid(pictures, columns=2, gap=1).size == (63, 43)
        with pytest.raises(ValueError, match="pictures"):
            picture_grid([])


class TestPage:
    """docs/how-ssd-works.md: its code, its program with what it prints, its figures."""

    ROOT = Path(__file__).parents[1]
    TEXT = (ROOT / "docs" / "how-ssd-works.md").read_text()
    PROGRAM = (ROOT / "examples" / "ssd_by_hand.py").read_text()
    EXCERPTS = re.findall(r"<!-- (\S+) -->\n```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", TEXT, re.DOTALL)

    @staticmethod
    def run(code: str, names: dict[str, Any]) -> str:
        """What the code prints; `names` are its variables before and after."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        return printed.getvalue()

    def test_excerpts_are_the_code(self) -> None:
        assert len(self.EXCERPTS) >= 7
        for file, excerpt, _ in self.EXCERPTS:
            source = (self.ROOT / file).read_text()
            assert any(textwrap.indent(excerpt, indent) in source for indent in ("", "    ", " " * 8)), (
                f"{file} has changed"
            )

    def test_program_prints_what_the_page_shows_piece_by_piece(self) -> None:
        pieces = [(code, shown) for file, code, shown in self.EXCERPTS if file == "examples/ssd_by_hand.py"]
        names: dict[str, Any] = {}
        for code, shown in pieces:
            assert self.run(code, names) == shown
        assert self.run(self.PROGRAM, {}) == "".join(shown for _, shown in pieces)

    def test_program_is_the_operators_and_the_figures(self) -> None:
        from fastssd.explain import __main__ as figures

        names: dict[str, Any] = {}
        self.run(self.PROGRAM, names)
        assert names["anchors"].tolist() == [list(box) for box in figures.ANCHORS]
        assert names["gt_boxes"].tolist() == [list(box) for box in figures.GT_BOXES]
        assert names["boxes"].tolist() == [list(box) for box in figures.BOXES]
        assert names["scores"].tolist() == list(figures.SCORES)
        assert names["gt_idx"].tolist() == match_anchors(names["anchors"], names["gt_boxes"]).gt_idx.tolist()
        assert names["kept"] == nms(names["boxes"], names["scores"], 0.45).tolist()

    def test_changes_do_what_the_page_says(self) -> None:
        changes = re.findall(r"^\| `(.*?)` \| `(.*?)` \| `(result: .*?)` \|", self.TEXT, re.MULTILINE)
        assert changes
        for old, new, result in changes:
            assert self.PROGRAM.count(old) == 1
            assert result in self.run(self.PROGRAM.replace(old, new), {}).splitlines()

    def test_figures_are_there_and_drawn_by_the_command(self) -> None:
        shown = set(re.findall(r"\(images/(\S+)\)", self.TEXT))
        assert shown == {path.name for path in (self.ROOT / "docs" / "images").iterdir()}
