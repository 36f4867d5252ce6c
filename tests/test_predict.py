"""Predicting a folder: results are written as a stream, survive any end, can be resumed, and load in COCO's tools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

import torch
from PIL import Image
from typer.testing import CliRunner

from fastssd.cli import app
from fastssd.data import DataError
from fastssd.deploy import Detector, predictions
from fastssd.deploy.coco import CocoIds, write_results
from fastssd.deploy.parallel import in_order
from fastssd.detection import TinySSD
from fastssd.training.checkpoint import KEY, CheckpointInfo, save_checkpoint

NAMES = ("cat", "dog")
NUM_IMAGES = 11
BATCH = 2
OPTIONS = ("--score-threshold", "0.4", "--max-detections", "5", "--batch-size", str(BATCH), "--workers", "2")
DOCUMENTS = ("predictions.jsonl", "predictions.json", "coco_detections.json", "coco_images.json")


def checkpoint_of(seed: int, path: Path) -> Path:
    torch.manual_seed(seed)
    model = TinySSD(len(NAMES))
    with torch.no_grad():
        for conv in model.head.classes:
            conv.weight *= 15  # some confident detections, like a trained model
    info = CheckpointInfo("tinyssd", NAMES, model.preset, {}, 1, 0, {}, None, None, [])
    save_checkpoint({"state_dict": model.state_dict(), KEY: info.to_dict()}, path)
    return path


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((60 + seed, 40)).save(path)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with two checkpoints and with images, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("predict")
    for seed, name in enumerate(("model.ckpt", "other.ckpt")):
        checkpoint_of(seed, folder / name)
    for number in range(NUM_IMAGES - 1):
        save_image(folder / "images" / f"{number}.png", number)
    (folder / "images" / "3-broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(autouse=True)
def _in_inputs(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("FASTSSD_NUM_THREADS", "2")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def predict(out: Path, *arguments: object, status: int = 1, images: str = "images", model: str = "model.ckpt"):
    """Run the command; its exit status is 1 by default, because one image cannot be read."""
    result = CliRunner().invoke(app, ["predict", model, images, "--out", str(out), *OPTIONS, *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status, result.output
    return result


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_every_image_has_a_line_and_documents_have_the_lines(out):
    predict(out)
    lines = lines_of(out)
    assert [line["image"] for line in lines] == sorted(line["image"] for line in lines)
    assert len(lines) == NUM_IMAGES
    found = [line for line in lines if "error" not in line]
    assert {**json.loads((out / "predictions.json").read_text()), "checkpoint": None} == {
        "checkpoint": None,
        "class_names": list(NAMES),
        "images": found,
        "failed": [line for line in lines if "error" in line],
    }
    for line in found:
        alone = Detector("model.ckpt", score_threshold=0.4, max_detections=5)(line["image"])
        assert [d["class"] for d in line["detections"]] == list(alone.names)
        np.testing.assert_allclose(
            np.reshape([d["box"] for d in line["detections"]], (-1, 4)), alone.boxes, rtol=1e-4, atol=1e-3
        )
        assert Image.open(line["drawn"]).size[0] >= 512
    assert sum(len(line["detections"]) for line in found) > NUM_IMAGES


def test_the_number_of_threads_changes_nothing(out, tmp_path):
    predict(out, "--no-draw")
    predict(tmp_path / "one", "--no-draw", "--workers", 1)
    for name in DOCUMENTS:
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_resumed_run_gives_the_files_of_a_run_never_stopped(out):
    predict(out)
    ref = contents(out)
    lines = ref["predictions.jsonl"].splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    for end in (0, ends[0] + 30, ends[1], ends[4] - 1, ends[-2], ends[-1]):
        (out / "predictions.jsonl").write_bytes(ref["predictions.jsonl"][:end])
        for name in DOCUMENTS[1:]:
            (out / name).unlink()
        predict(out, "--resume")
        assert contents(out) == ref


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_loses_nothing(out, inputs, signum):
    many = inputs / "many"
    for number in range(30):
        save_image(many / f"{number:02}.jpg", number)
    predict(out, "--no-draw", images="many", status=0)
    ref = contents(out)
    command = [sys.executable, "-m", "fastssd", "predict", "model.ckpt", "many", "--out", str(out), *OPTIONS]
    with subprocess.Popen(
        [*command, "--no-draw", "--overwrite"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.send_signal(signum)
        _, errors = process.communicate()
    assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum), errors
    left = (out / "predictions.jsonl").read_bytes()
    assert ref["predictions.jsonl"].startswith(left)
    assert 0 < len(left) < len(ref["predictions.jsonl"])
    assert not (out / "predictions.json").exists()
    if signum != signal.SIGKILL:
        assert "--resume" in errors
        assert left.count(b"\n") % BATCH == 0
    predict(out, "--no-draw", "--resume", images="many", status=0)
    assert contents(out) == ref


def test_new_images_are_added_on_resume(out, tmp_path):
    images = tmp_path / "images"
    for number in (1, 2, 3, 4):
        save_image(images / f"{number}.png", number)
    predict(out, images=str(images), status=0)
    first = lines_of(out)
    save_image(images / "0.png", 5)
    save_image(images / "1.bmp", 6)  # drawn as 1-2.png
    predict(out, "--resume", images=str(images), status=0)
    assert lines_of(out)[:4] == first
    assert [Path(line["image"]).name for line in lines_of(out)[4:]] == ["0.png", "1.bmp"]
    assert sorted(path.name for path in out.glob("*.png")) == ["0.png", "1-2.png", "1.png", "2.png", "3.png", "4.png"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--score-threshold", "0.5"], "score_threshold"),
        (["--no-draw"], "draw"),
        (["--batch-size", "3"], "batch_size"),
        ("other.ckpt", "checkpoint_sha256"),
        ("no meta file", "predictions.meta.json"),
        ("no lines", "predictions.jsonl:1"),
    ],
)
def test_results_of_other_options_are_not_resumed(out, change, named):
    predict(out)
    if change == "no meta file":
        (out / "predictions.meta.json").unlink()
    if change == "no lines":
        (out / "predictions.jsonl").write_text("hello\n")
    before = contents(out)
    model = change if str(change).endswith("ckpt") else "model.ckpt"
    result = predict(out, "--resume", *(change if isinstance(change, list) else []), model=model)
    assert named in result.stderr
    assert contents(out) == before


def test_many_results_are_only_replaced_on_request(out, monkeypatch):
    predict(out, "--no-draw")
    predict(out, "--no-draw", "--score-threshold", 0.45)  # a few are replaced
    monkeypatch.setattr(predictions, "FEW", NUM_IMAGES - 1)
    before = contents(out)
    result = predict(out, "--no-draw")
    assert str(out) in result.stderr
    assert contents(out) == before
    predict(out, "--no-draw", "--overwrite")
    assert contents(out).keys() == before.keys()
    assert contents(out) != before
    predict(out, "--resume", "--overwrite", status=2)


def test_only_one_process_can_write(out):
    with predictions.Predictions(out, {"batch_size": 1}, {}):
        assert str(out) in predict(out).stderr
    predict(out)


def test_threads_take_few_items_ahead():
    taken = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    for number, result in enumerate(in_order(lambda item: item * 2, items(), 3)):
        assert result == number * 2
        assert len(taken) <= number + 1 + 3
    with pytest.raises(ZeroDivisionError):
        [*in_order(lambda item: 1 // (item - 5), items(), 3)]


# --- COCO ------------------------------------------------------------------------------------------------------------


def coco_file(path: Path, names: list[str], categories: dict[str, int]) -> Path:
    images = [{"id": 100 + 7 * index, "file_name": name} for index, name in enumerate(names)]
    listed = [{"id": key, "name": name} for name, key in categories.items()]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": listed}))
    return path


def test_results_have_the_ids_of_the_annotations(out, tmp_path):
    names = [f"images/{number}.png" for number in range(NUM_IMAGES - 3)]
    file = coco_file(tmp_path / "instances.json", names, {"dog": 17, "bird": 3})
    result = predict(out, "--annotations", file)
    assert str(file) in result.stderr  # it has neither all images nor all classes
    expected = [
        (100 + 7 * names.index(line["image"]), 17, found["score"], found["box"])
        for line in lines_of(out)
        if line["image"] in names
        for found in line["detections"]
        if found["class"] == "dog"
    ]
    comp = json.loads((out / "coco_detections.json").read_text())
    assert [(found["image_id"], found["category_id"], found["score"]) for found in comp] == [e[:3] for e in expected]
    for found, (*_, (x1, y1, x2, y2)) in zip(comp, expected, strict=True):
        assert found["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert expected
    assert not (out / "coco_images.json").exists()


def test_results_without_annotations_have_a_file_that_explains_their_ids(out):
    predict(out)
    described = json.loads((out / "coco_images.json").read_text())
    files = {image["id"]: image["file_name"] for image in described["images"]}
    categories = {category["id"]: category["name"] for category in described["categories"]}
    expected = [
        (line["image"], found["class"], found["score"])
        for line in lines_of(out)
        for found in line.get("detections", ())
    ]
    comp = json.loads((out / "coco_detections.json").read_text())
    assert [(files[r["image_id"]], categories[r["category_id"]], r["score"]) for r in comp] == expected


def test_an_image_gets_the_id_of_the_longest_matching_file_name(tmp_path):
    file = coco_file(tmp_path / "a.json", ["a/1.jpg", "b/1.jpg", "2.jpg", "c/3.jpg"], {"cat": 1})
    ids = CocoIds(file, NAMES)
    found = [ids.image(name) for name in ("x/a/1.jpg", "b/1.jpg", "./x/2.jpg", "x/3.jpg", "x/1.jpg", "x/a/4.jpg")]
    assert found == [100, 107, 114, 121, None, None]
    assert ids.check(["a/1.jpg", "b/1.jpg", "unknown.jpg"]) == 2
    with pytest.raises(ValueError, match=r"x/2\.jpg"):
        ids.check(["2.jpg", "x/2.jpg"])
    with pytest.raises(ValueError, match=r"a\.json"):
        ids.check(["unknown.jpg"])
    with pytest.raises(ValueError, match="cat"):
        CocoIds(file, ["lion"])
    (tmp_path / "bad.json").write_text('{"images": [{"id": 1}], "categories": []}')
    with pytest.raises(DataError, match=r"bad\.json"):
        CocoIds(tmp_path / "bad.json", NAMES)


def test_results_load_in_pycocotools(out):
    coco = pytest.importorskip("pycocotools.coco")
    predict(out)
    loaded = coco.COCO(str(out / "coco_images.json")).loadRes(str(out / "coco_detections.json"))
    assert len(loaded.anns) == len(json.loads((out / "coco_detections.json").read_text()))


def test_after_an_error_the_old_file_of_results_is_kept(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("before")
    with pytest.raises(KeyError):
        write_results(path, [{"image": "1.jpg", "detections": [{"label": 1}]}])
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["results.json"]
