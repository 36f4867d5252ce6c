"""The command: its output on stdout and stderr, its exit status, and that errors name what was wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("typer")
from typer.testing import CliRunner

from fastssd.cli import app

needs_training = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "lightning", "faster_coco_eval", "matplotlib")),
    reason="needs the extra train",
)


def fastssd(*arguments: object):
    """Run the command in this process; a traceback fails the test."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict]:
    """A detector trained for one epoch on a few shapes: its run folder and the output of `train --json`."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    result = fastssd("train", "shapes:16", "--epochs", 1, "--batch-size", 8, "--out", folder, "--json")
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


@pytest.fixture
def photo(tmp_path) -> Path:
    from PIL import Image

    from fastssd.data import shapes_dataset

    path = tmp_path / "photo.jpg"
    Image.fromarray(shapes_dataset(1)[0].image).save(path)
    return path


@pytest.mark.parametrize(
    "command", ["demo", "train", "eval", "predict", "export", "anchors", "explain", "info", "benchmark"]
)
def test_help_has_examples(command):
    result = fastssd(command, "--help")
    assert result.exit_code == 0
    assert f"fastssd {command}" in result.stdout.split("Examples")[1]


class TestInfo:
    def test_json_and_text_have_the_same_values(self):
        config = json.loads(fastssd("info", "--json").stdout)
        assert config["backends"][config["backend"]] is None  # no reason that it cannot run
        text = fastssd("info").stdout
        assert config["numpy"] in text
        assert str(config["num_threads"]) in text

    def test_without_torch_and_numba_it_works_and_names_what_to_install(self):
        code = """
import importlib.util
find, missing = importlib.util.find_spec, ("torch", "numba", "fastssd._C")
importlib.util.find_spec = lambda name, *package: None if name in missing else find(name, *package)
from fastssd.cli import app
app(["info", "--json"])
"""
        found = python(code, FASTSSD_BACKEND="reference")
        config = json.loads(found.stdout)
        assert found.returncode == 0
        assert config["torch"] is None
        assert "fastssd[numba]" in config["backends"]["numba"]
        assert "compiler" in config["backends"]["cpp"]

    def test_loads_no_large_package(self):
        code = """
import sys
from fastssd.cli import app
app(["info"], standalone_mode=False)
print(sorted({"torch", "lightning", "matplotlib", "PIL"} & set(sys.modules)), file=sys.stderr)
"""
        assert python(code).stderr.strip() == "[]"


class TestBenchmark:
    def test_measures_the_chosen_workload(self):
        result = json.loads(fastssd("benchmark", "--only", "nms 8,", "--seconds", "0.01", "--json").stdout)
        assert {m["workload"] for m in result["measurements"]} == {"nms 8, crowded"}
        assert all(m["seconds"] > 0 for m in result["measurements"])
        assert result["environment"]["numpy"]

    def test_unknown_workload_is_a_usage_error(self):
        assert fastssd("benchmark", "--only", "no such workload").exit_code == 2


def test_version():
    assert fastssd("--version").stdout.strip() == json.loads(fastssd("info", "--json").stdout)["fastssd"]


def test_without_typer_the_extra_is_named():
    found = python("import sys; sys.modules['typer'] = None; from fastssd.cli import main; main()")
    assert found.returncode == 1
    assert "fastssd[cli]" in found.stderr
    assert "Traceback" not in found.stderr


@needs_training
class TestRoundTrip:
    def test_train_reports_the_content_of_the_folder(self, run):
        folder, report = run
        assert Path(report["best_checkpoint"]).is_file()
        assert Path(report["predictions"]).is_file()
        assert json.loads((folder / "config.json").read_text())["batch_size"] == 8
        assert [row["epoch"] for row in report["history"]] == [1]

    def test_eval_gives_the_metrics_that_train_reported(self, run):
        folder, report = run
        metrics = json.loads(fastssd("eval", folder, "shapes:16", "--json").stdout)
        assert metrics["AP50"] == pytest.approx(report["best"]["AP50"], abs=1e-6)
        assert "AP50" in fastssd("eval", report["best_checkpoint"], "shapes:16").stdout

    def test_predict_draws_and_writes_json(self, run, photo, tmp_path):
        from PIL import Image

        out = tmp_path / "found"
        result = fastssd("predict", run[0], photo, "--out", out, "--score-threshold", 0.01, "--json")
        assert result.exit_code == 0
        printed = json.loads(result.stdout)
        assert printed == json.loads((out / "predictions.json").read_text())
        (entry,) = printed["images"]
        assert entry["detections"]
        for found in entry["detections"]:
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 <= x2 <= entry["width"]
            assert 0 <= y1 <= y2 <= entry["height"]
            assert found["class"] == printed["class_names"][found["label"] - 1]
        assert Image.open(entry["drawn"]).size >= (512, 512)

    def test_predict_names_bad_images_and_does_the_others(self, run, photo, tmp_path):
        (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:2000])
        out = tmp_path / "found"
        result = fastssd("predict", run[0], tmp_path, tmp_path / "missing.jpg", "--out", out)  # a folder and a file
        assert result.exit_code == 1
        written = json.loads((out / "predictions.json").read_text())
        assert [Path(entry["image"]).name for entry in written["images"]] == ["photo.jpg"]
        assert [Path(entry["image"]).name for entry in written["failed"]] == ["broken.png", "missing.jpg"]
        for name in ("broken.png", "missing.jpg"):
            assert name in result.stderr

    def test_predict_overwrites_neither_originals_nor_images_of_the_same_name(self, run, photo, tmp_path):
        twin = tmp_path / "other" / "photo.jpeg"
        twin.parent.mkdir()
        twin.write_bytes(photo.read_bytes())
        before = photo.read_bytes()
        out = tmp_path / "found"
        assert fastssd("predict", run[0], photo, twin, "--out", out).exit_code == 0
        assert sorted(path.name for path in out.glob("*.jpg")) == ["photo-2.jpg", "photo.jpg"]
        result = fastssd("predict", run[0], photo, "--out", tmp_path)
        assert result.exit_code == 1
        assert str(photo) in result.stderr
        assert photo.read_bytes() == before

    def test_predictions_of_a_coco_folder_have_the_ap_of_eval(self, run, tmp_path):
        """With ids that do not count from 1. The ground truth is what the detector finds, slightly changed."""
        from faster_coco_eval import COCO, COCOeval_faster
        from PIL import Image

        from fastssd.data import shapes_dataset

        (tmp_path / "images").mkdir()
        for number, sample in enumerate(shapes_dataset(8)):
            Image.fromarray(sample.image).save(tmp_path / "images" / f"{number}.png")
        arguments = ["predict", run[0], tmp_path / "images", "--no-draw", "--score-threshold", 0.01, "--out"]
        limits = ["--max-detections", 100]
        assert fastssd(*arguments, tmp_path / "first").exit_code == 0
        found = json.loads((tmp_path / "first" / "predictions.json").read_text())
        ids = {name: 70 - 10 * index for index, name in enumerate(found["class_names"])}
        truths = [
            {"image_id": 900 - index, "category_id": ids[d["class"]], "bbox": [x1, y1, 0.83 * (x2 - x1), y2 - y1]}
            for index, entry in enumerate(found["images"])
            for d in entry["detections"][2:9:2]
            for x1, y1, x2, y2 in [d["box"]]
        ]
        instances = {
            "images": [{"id": 900 - index, "file_name": f"{index}.png"} for index in range(8)],
            "categories": [{"id": key, "name": name} for name, key in ids.items()],
            "annotations": [
                {"id": n, "iscrowd": 0, "area": t["bbox"][2] * t["bbox"][3], **t} for n, t in enumerate(truths, 1)
            ],
        }
        (tmp_path / "annotations").mkdir()
        for split in ("train", "val"):
            (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(instances))
        ref = json.loads(fastssd("eval", run[0], tmp_path, "--split", "val", "--json").stdout)
        file = tmp_path / "annotations" / "instances_val.json"
        assert fastssd(*arguments, tmp_path / "second", "--annotations", file, *limits).exit_code == 0
        coco = COCO(str(file))
        results = coco.loadRes(str(tmp_path / "second" / "coco_detections.json"))
        comp = COCOeval_faster(coco, results, "bbox")
        comp.evaluate()
        comp.accumulate()
        comp.summarize()
        assert 0.05 < ref["AP"] < 0.95
        assert comp.stats[0] == pytest.approx(ref["AP"], abs=1e-4)
        assert comp.stats[1] == pytest.approx(ref["AP50"], abs=1e-4)

    def test_explain(self, run, tmp_path):
        result = fastssd(
            "explain", "shapes", "--checkpoint", run[0], "--out", tmp_path, "--score-threshold", 0.01, "--index", 1
        )
        assert result.exit_code == 0
        assert sorted(path.name for path in tmp_path.glob("*.png")) == ["anchors.png", "matching.png", "nms.png"]

    def test_resumed_run_keeps_its_settings(self, run):
        folder, _ = run
        result = fastssd("train", "shapes:16", "--resume", folder, "--epochs", 2, "--json")
        assert result.exit_code == 0
        assert [row["epoch"] for row in json.loads(result.stdout)["history"]] == [1, 2]
        assert json.loads((folder / "config.json").read_text())["batch_size"] == 8

    def test_demo_prints_its_ap_and_the_drawn_images(self, tmp_path):
        result = fastssd("demo", "--quick", "--out", tmp_path / "demo")
        assert result.exit_code == 0
        assert "AP50" in result.stdout
        assert str(tmp_path / "demo" / "predictions.png") in result.stdout


@needs_training
class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "status", "named"),
        [
            (["eval", "missing.ckpt", "shapes"], 1, "missing.ckpt"),
            (["eval", "{foreign}", "shapes"], 1, "foreign.ckpt"),
            (["predict", "missing.ckpt", "photo.jpg"], 1, "missing.ckpt"),
            (["train", "no/such/folder"], 1, "no/such/folder"),
            (["train", "{folder}"], 1, "folder"),
            (["train", "shapes", "--train-split", "nope"], 1, "nope"),
            (["train", "shapes", "--resume", "{folder}"], 1, "last.ckpt"),
            (["explain", "shapes", "--index", "9999999"], 2, "9999999"),
            (["train", "shapes", "--optimizer", "nope"], 2, "nope"),
            (["train", "shapes", "--epochs", "0"], 2, "epochs"),
            (["train", "shapes", "--nope"], 2, "--nope"),
            (["demo", "--epochs", "1", "--minutes", "1"], 2, "--minutes"),
            (["train", "shapes", "--fit-anchors", "--resume", "{folder}"], 2, "--fit-anchors"),
            (["predict"], 2, "CHECKPOINT"),
            (["predict", "x.ckpt", "photo.jpg", "--accelerator", "nope"], 2, "nope"),
        ],
    )
    def test_status_and_message(self, arguments, status, named, tmp_path):
        (tmp_path / "foreign.ckpt").write_bytes(b"not a checkpoint")
        (tmp_path / "folder").mkdir()
        paths = {"foreign": tmp_path / "foreign.ckpt", "folder": tmp_path / "folder"}
        result = fastssd(*(argument.format(**paths) for argument in arguments))
        assert result.exit_code == status
        assert named in result.stderr
        assert not result.stdout

    def test_bad_annotations_are_left_out_on_request(self, photo, tmp_path):
        (tmp_path / "data" / "images").mkdir(parents=True)
        (tmp_path / "data" / "labels").mkdir()
        for index in range(8):
            (tmp_path / "data" / "images" / f"{index}.jpg").write_bytes(photo.read_bytes())
            (tmp_path / "data" / "labels" / f"{index}.txt").write_text(
                "0 0.5 0.5 0.2 0.2\n" + "0 0.5 0.5 0 0\n" * (index < 2)
            )
        (tmp_path / "data" / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [thing]\n")
        arguments = ["explain", tmp_path / "data", "--out", tmp_path]
        result = fastssd(*arguments)
        assert result.exit_code == 1
        assert "1.txt:2" in result.stderr
        assert "--on-error skip" in result.stderr
        result = fastssd(*arguments, "--on-error", "skip")
        assert result.exit_code == 0
        assert "1.txt:2" in result.stderr

    def test_traceback_on_request(self):
        found = subprocess.run(
            [sys.executable, "-m", "fastssd", "--debug", "eval", "missing.ckpt", "shapes"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 1
        assert "Traceback" in found.stderr

    def test_interrupted_training_says_how_to_continue(self, tmp_path):
        folder = tmp_path / "a run"
        arguments = ["train", "shapes:8", "--epochs", "500", "--batch-size", "4", "--out", str(folder)]
        with subprocess.Popen(
            [sys.executable, "-m", "fastssd", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if line.startswith("epoch 1/"):
                    process.send_signal(signal.SIGINT)
        assert process.returncode == 130, "".join(lines)
        again = shlex.split(lines[-1].partition(": ")[2])
        assert again[:2] == ["fastssd", "train"]
        assert again[again.index("--resume") + 1] == str(folder)
        assert (folder / "checkpoints" / "last.ckpt").is_file()


@needs_training
def test_defaults_in_the_help_are_those_of_training():
    from fastssd.cli.train import train
    from fastssd.training import TrainConfig

    config = TrainConfig()
    values = asdict(config) | asdict(config.criterion) | asdict(config.augment)
    shown = {}
    for name, annotation in train.__wrapped__.__annotations__.items():
        if name in values and "option(" in annotation:
            shown[name] = eval(annotation, vars(sys.modules["fastssd.cli.train"])).__metadata__[0].show_default
    assert shown.keys() >= {"epochs", "lr", "neg_pos_ratio", "flip", "precision"}
    described_in_words = {
        "num_workers",
        "cache",
        "weights",
        "freeze",
        "preset",
        "background_threshold",
        "multi_scale",
        "class_weights",
    }
    for name in shown.keys() - described_in_words:
        assert shown[name] == str(values[name]), name


@needs_training
def test_anchors_are_fitted_and_used_in_training(tmp_path):
    preset, plot = tmp_path / "fitted.json", tmp_path / "coverage.png"
    size = ("--image-size", 128)
    shown = fastssd("anchors", "shapes:12", *size, "--fit", "--out", preset, "--plot", plot, "--json")
    before, after = (json.loads(shown.stdout)["presets"][name]["coverage"]["all"] for name in ("tinyssd", "fitted"))
    assert after["share_under_0.5"] <= before["share_under_0.5"]
    assert plot.read_bytes()[:4] == b"\x89PNG"
    for number, anchors in enumerate((["--preset", preset], [*size, "--fit-anchors"])):
        folder = tmp_path / f"run-{number}"
        result = fastssd("train", "shapes:12", *anchors, "--epochs", 1, "--batch-size", 4, "--out", folder)
        assert result.exit_code == 0, result.output
        used = json.loads((folder / "config.json").read_text())["preset"]
        assert used["image_size"] == 128
        assert used["scales"] == json.loads(preset.read_text())["scales"]
    wrong = fastssd("train", "shapes:12", "--preset", plot)
    assert wrong.exit_code == 1
    assert str(plot) in wrong.output


@needs_training
def test_eval_writes_its_report(run, tmp_path):
    report = tmp_path / "report.html"
    result = fastssd("eval", run[0], "shapes:16", "--report", report)
    assert result.exit_code == 0, result.output
    assert "<svg" in report.read_text()
