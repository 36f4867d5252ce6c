"""Export and Detector: the results of torch without torch, from every kind of input image."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
import torch
from PIL import Image

import fastssd
from fastssd.data import DataError, shapes_dataset
from fastssd.deploy import Detector
from fastssd.deploy.metadata import Limits, NetworkInfo
from fastssd.deploy.networks import to_input
from fastssd.deploy.onnx_export import export_onnx
from fastssd.deploy.onnx_nms import at_most, postprocess_graph
from fastssd.detection import TINYSSD, TinySSD, detect, preprocess
from fastssd.ops import box_iou, postprocess_detections
from fastssd.training.checkpoint import KEY, CheckpointInfo, save_checkpoint

NAMES = ("cat", "dog", "Müller's cow")
MOST = 300  # more than are found, so that none is cut off
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}

pytestmark = pytest.mark.usefixtures("one_thread_of_torch")


class Files(NamedTuple):
    checkpoint: Path
    heads: Path
    nms: Path


class Limit(NamedTuple):
    """Thresholds that are not close to any score or IoU, so that rounding cannot change which boxes are found."""

    iou: float
    low: float
    scores: tuple[float, ...]

    def options(self, score: float | None = None) -> dict[str, float]:
        return {"score_threshold": score or self.low, "iou_threshold": self.iou, "max_detections": MOST}


@functools.cache
def trained_like() -> TinySSD:
    """A network with a few confident detections, like a trained one, and different ones in every image."""
    torch.manual_seed(0)
    model = TinySSD(len(NAMES)).eval()
    with torch.no_grad():
        for convs, factor in ((model.head.classes, 15), (model.head.boxes, 10)):
            for conv in convs:
                conv.weight *= factor
        for conv in model.head.classes:
            conv.bias.view(-1, 4)[:, 0] += 2  # most anchors are background
    return model


def widest_gap(values: np.ndarray, near: float) -> float:
    """The middle of the widest gap between values around `near`."""
    around = np.sort(np.append(values[np.abs(values - near) < 0.02], [near - 0.02, near + 0.02])).astype(np.float64)
    gap = np.diff(around).argmax()
    return float(around[gap : gap + 2].mean())


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Images of several sizes; one has the network's input size."""
    images = [sample.image for sample in shapes_dataset(4)]
    return [images[0][:97, :201], images[1], np.repeat(images[2], 3, axis=0), images[3][:, ::2]]


@pytest.fixture(scope="module")
def limit(images) -> Limit:
    unfiltered = detect(trained_like(), images, score_threshold=0.04, iou_threshold=1, topk=None, max_detections=99_999)
    scores = np.concatenate([found.scores for found in unfiltered])
    ious = [
        box_iou(found.boxes[found.labels == label], found.boxes[found.labels == label]).ravel()
        for found in unfiltered
        for label in np.unique(found.labels)
    ]
    thresholds = tuple(widest_gap(scores, near) for near in (0.06, 0.3, 0.6, 0.9))
    return Limit(widest_gap(np.concatenate(ious), 0.45), thresholds[0], thresholds)


def reuse_export(patch: pytest.MonkeyPatch, heads: Path) -> None:
    """Replace torch's exporter, which takes seconds, by its result in `heads`."""
    patch.setattr("fastssd.deploy.onnx_export._heads", lambda _: onnx.load(heads))


@pytest.fixture(scope="module")
def files(tmp_path_factory, limit) -> Files:
    folder = tmp_path_factory.mktemp("deploy")
    made = Files(folder / "model.ckpt", folder / "heads.onnx", folder / "nms.onnx")
    model = trained_like()
    info = CheckpointInfo("tinyssd", NAMES, model.preset, {}, 1, 0, {}, None, None, [])
    save_checkpoint({"state_dict": model.state_dict(), KEY: info.to_dict()}, made.checkpoint)
    model.train()
    export_onnx(model, made.heads, class_names=NAMES)
    assert model.training  # exporting has not changed its mode
    model.eval()
    with pytest.MonkeyPatch.context() as patch:
        reuse_export(patch, made.heads)
        export_onnx(model, made.nms, class_names=NAMES, nms=True, **limit.options())
    return made


@pytest.fixture(scope="module")
def detectors(files, limit) -> list[Detector]:
    """A detector for each kind of file, with the same limits."""
    return [Detector(path, **limit.options()) for path in files]


def assert_same(comp, ref):
    np.testing.assert_array_equal(comp.labels, ref.labels)
    np.testing.assert_allclose(comp.scores, ref.scores, **TOLERANCE)
    np.testing.assert_allclose(comp.boxes, ref.boxes, **TOLERANCE)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


# --- the same results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", Files._fields)
def test_every_file_gives_the_results_of_torch(files, images, limit, which):
    for threshold in limit.scores:
        refs = detect(trained_like(), images, **limit.options(threshold))
        comps = Detector(getattr(files, which), **limit.options(threshold))(images)
        for comp, ref in zip(comps, refs, strict=True):
            assert_same(comp, ref)
            assert comp.names == tuple(NAMES[label - 1] for label in ref.labels)


def test_many_detections_one_and_none(files, images, limit, detectors):
    scores = detectors[0](images[0]).scores
    between, above = float(scores[:2].astype(np.float64).mean()), float(np.nextafter(scores[0], np.float32(2))) + 1e-4
    assert len(set(detectors[0](images[0]).labels)) == len(NAMES)
    for path in files:
        counts = [
            len(Detector(path, score_threshold=t, iou_threshold=limit.iou)(images[0]))
            for t in (limit.low, between, above)
        ]
        assert counts == [len(scores), 1, 0]
        assert len(scores) > 20
        assert Detector(path, score_threshold=above, iou_threshold=limit.iou)(images[0]).boxes.shape == (0, 4)


def test_a_run_folder_is_opened_at_its_best_checkpoint(files, tmp_path):
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.write_bytes(files.checkpoint.read_bytes())
    assert Detector(tmp_path).path == best
    assert Detector(tmp_path).class_names == NAMES


@pytest.mark.parametrize("most", [1, 7])
def test_fewer_detections_are_the_first_ones(files, images, limit, detectors, most):
    ref = detectors[0](images[0])
    for path in files:
        comp = Detector(path, score_threshold=limit.low, iou_threshold=limit.iou, max_detections=most)(images[0])
        assert len(comp) == most
        np.testing.assert_allclose(comp.boxes, ref.boxes[:most], **TOLERANCE)


def test_the_same_pixels_reach_every_network(images):
    pixels = np.stack([preprocess.resize_image(image, 256) for image in images])
    ref = preprocess.to_input(torch.from_numpy(pixels)).numpy()
    comp = to_input(pixels)
    assert comp.flags.c_contiguous
    assert comp.dtype == ref.dtype
    np.testing.assert_array_equal(comp, ref)


# --- without torch -------------------------------------------------------------------------------------------------


WITHOUT_TORCH = {
    "Detector": "[fastssd.Detector(path)(image).draw() for path in (heads, nms)]",
    "predict": "from fastssd.cli import app; app(['predict', heads, image, '--out', out], standalone_mode=False)",
}


@pytest.mark.parametrize("way", WITHOUT_TORCH)
def test_an_onnx_file_needs_no_torch(files, tmp_path, way):
    if way == "predict":
        pytest.importorskip("typer")
    image = tmp_path / "image.png"
    Image.fromarray(shapes_dataset(1)[0].image).save(image)
    done = python(f"""
import sys, fastssd
heads, nms, image, out = {[str(path) for path in (files.heads, files.nms, image, tmp_path / "out")]}
{WITHOUT_TORCH[way]}
print(sorted({{"torch", "onnx", "matplotlib"}} & set(sys.modules)))
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("module", "extra"), [("onnxruntime", "fastssd[deploy]"), ("PIL", "fastssd[deploy]")])
def test_the_error_for_a_missing_package_names_its_extra(files, module, extra):
    code = (
        f"import sys; sys.modules[{module!r}] = None; import fastssd; fastssd.Detector({str(files.heads)!r})('x.jpg')"
    )
    done = python(code)
    assert done.returncode != 0
    assert extra in done.stderr.splitlines()[-1]


def test_the_error_of_exporting_names_its_extra():
    done = python("import sys; sys.modules['onnxscript'] = None; import fastssd.deploy.onnx_export")
    assert "fastssd[export]" in done.stderr.splitlines()[-1]


# --- images --------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_is_accepted(files, images, limit, tmp_path):
    image, path = images[0], tmp_path / "image.png"
    Image.fromarray(image).save(path)
    detector = Detector(files.heads, score_threshold=limit.low, iou_threshold=limit.iou, batch_size=2)
    ref = detector(image)
    content = path.read_bytes()
    several = [image, path, str(path), content, bytearray(content), memoryview(content), Image.open(path)]
    for comp in [
        *map(detector, several),
        *detector(several),
        *detector(iter(several)),
        *detector(np.stack([image] * 3)),
    ]:
        assert_same(comp, ref)
        assert comp.size == image.shape[:2]
    assert detector([]) == []
    assert [len(found) for found in detector(images)] == [len(detector(image)) for image in images]


def test_exif_orientation_is_applied_to_files_but_not_to_pillow_images(detectors, images):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    content = io.BytesIO()
    Image.fromarray(images[0]).save(content, "PNG", exif=exif)
    detector = detectors[1]
    height, width = images[0].shape[:2]
    upright = detector(content.getvalue())
    assert upright.size == (width, height)
    assert_same(upright, detector(np.rot90(images[0], -1)))
    assert detector(Image.open(content)).size == (height, width)


def test_results_can_be_iterated_indexed_and_drawn(detectors, images):
    found = detectors[1](images[0])
    assert [*found] == [found[i] for i in range(len(found))]
    name, score, box = found[0]
    assert (name, score) == (NAMES[found.labels[0] - 1], found.scores.max())
    np.testing.assert_array_equal(np.float32(box), found.boxes[0])
    assert name in repr(found)
    drawn = found.draw()
    assert drawn.size == (found.size[1], found.size[0])
    assert (np.asarray(drawn) != images[0]).any()


@pytest.mark.parametrize(
    ("image", "error", "named"),
    [
        (None, TypeError, "NoneType"),
        ([3.5], TypeError, r"pictures\[0\].*float"),
        ("missing.jpg", DataError, "missing.jpg"),
        (b"no image", DataError, "picture"),
        ([np.zeros((4, 4, 3), np.uint8), b"no image"], DataError, r"pictures\[1\]"),
        (np.zeros((4, 4), np.uint8), ValueError, r"\[4, 4\]"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, r"\[3, 4, 4\]"),
        (np.zeros((4, 4, 3)), ValueError, "float64"),
        ([np.zeros((0, 4, 3), np.uint8)], ValueError, r"pictures\[0\]"),
    ],
)
def test_the_error_for_a_bad_image_names_it(files, image, error, named):
    with pytest.raises(error, match=named):
        Detector(files.heads)(image)


def test_errors_can_be_returned_instead_of_raised(files, images, limit):
    detector = Detector(files.heads, score_threshold=limit.low, iou_threshold=limit.iou, batch_size=2)
    several = [b"no image", images[0], "missing.jpg", b"", b"no image", images[1]]
    found = [*detector.stream(several, on_error="return")]
    for index, result in enumerate(found):
        if index in (1, 5):
            assert_same(result, detector(several[index]))
        else:
            assert isinstance(result, DataError)
    assert "missing.jpg" in str(found[2])
    with pytest.raises(ValueError, match="ignore"):
        next(detector.stream(several, on_error="ignore"))
    with pytest.raises(TypeError, match="float"):
        [*detector.stream([3.5], on_error="return")]
    with pytest.raises(TypeError, match=r"missing\.jpg"):
        next(detector.stream("missing.jpg", on_error="return"))


def test_a_result_as_json_is_exact(detectors, images):
    found = detectors[1](images[0])
    again = json.loads(json.dumps(found.to_dict()))
    assert (again["height"], again["width"]) == found.size
    np.testing.assert_array_equal(np.float32([d["box"] for d in again["detections"]]), found.boxes)
    np.testing.assert_array_equal(np.float32([d["score"] for d in again["detections"]]), found.scores)
    assert tuple(d["class"] for d in again["detections"]) == found.names


def test_a_truncated_image_is_an_error(files, images):
    content = io.BytesIO()
    Image.fromarray(images[1]).save(content, "JPEG")
    with pytest.raises(DataError, match="truncated"):
        Detector(files.heads)(content.getvalue()[:-200])


# --- the detector ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", Files._fields)
def test_one_detector_serves_threads_and_survives_pickling(files, images, limit, which):
    detector = Detector(
        getattr(files, which), score_threshold=0.2, iou_threshold=limit.iou, max_detections=50, threads=1
    )
    refs = detector(images)
    with ThreadPoolExecutor(4) as threads:
        for comp, ref in zip(threads.map(detector, images * 4), refs * 4, strict=True):
            assert_same(comp, ref)
    again = pickle.loads(pickle.dumps(detector))
    assert again.limits == detector.limits
    for comp, ref in zip(again(images), refs, strict=True):
        assert_same(comp, ref)


@pytest.mark.parametrize(
    ("which", "options", "named"),
    [
        ("heads", {"score_threshold": 1.5}, "score_threshold"),
        ("heads", {"iou_threshold": float("nan")}, "iou_threshold"),
        ("checkpoint", {"max_detections": 0}, "max_detections"),
        ("heads", {"batch_size": 0}, "batch_size"),
        ("heads", {"threads": 0}, "threads"),
        ("heads", {"providers": ["NoSuchProvider"]}, "NoSuchProvider"),
        ("heads", {"device": "cpu"}, "device"),
        ("checkpoint", {"providers": ["CPUExecutionProvider"]}, "providers"),
        ("nms", {"score_threshold": 0.01}, "score_threshold"),
        ("nms", {"iou_threshold": 0.5}, "iou_threshold"),
        ("nms", {"max_detections": MOST + 1}, "max_detections"),
    ],
)
def test_the_error_for_a_bad_option_names_it(files, which, options, named):
    with pytest.raises(ValueError, match=named):
        Detector(getattr(files, which), **options)


def test_the_error_for_a_bad_file_names_it(files, tmp_path):
    foreign = onnx.load(files.heads)
    del foreign.metadata_props[:]
    contents = {
        "text.onnx": b"hello",
        "empty.onnx": b"",
        "damaged.onnx": files.heads.read_bytes()[:100_000],
        "foreign.onnx": foreign.SerializeToString(),
        "damaged.ckpt": files.checkpoint.read_bytes()[:100_000],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            Detector(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing"):
        Detector(tmp_path / "missing.onnx")


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_metadata_is_complete_and_has_nothing_of_this_machine(files, limit):
    for path in (files.heads, files.nms):
        exported = onnx.load(path)
        onnx.checker.check_model(exported, full_check=True)
        info = NetworkInfo.from_metadata({entry.key: entry.value for entry in exported.metadata_props})
        assert info.class_names == NAMES
        assert info.version == fastssd.__version__
        assert json.loads(json.dumps(info.preset)) == json.loads(json.dumps(TINYSSD.to_dict()))
        assert info.limits == (Limits(topk=400, **limit.options()) if info.nms else Limits(0.3, 0.45, 400, 200))
        np.testing.assert_array_equal(info.anchors, TINYSSD.anchors())
        assert {opset.domain for opset in exported.opset_import} == {""}
        content = path.read_bytes()
        for text in (os.path.dirname(fastssd.__file__), os.path.dirname(torch.__file__), "forward"):
            assert text.encode() not in content


def test_a_file_is_written_completely_or_not_at_all(files, tmp_path, monkeypatch):
    reuse_export(monkeypatch, files.heads)
    target = tmp_path / "model.onnx"
    target.write_text("before")
    with pytest.raises(ValueError, match="3 names"):
        export_onnx(trained_like(), target, class_names=NAMES[:2])
    with pytest.raises(ValueError, match="score_threshold"):
        export_onnx(trained_like(), target, class_names=NAMES, score_threshold=2)
    monkeypatch.setattr("fastssd.deploy.onnx_export._run", lambda *_: [np.float32(0)] * 2)
    with pytest.raises(RuntimeError, match="logits"):
        export_onnx(trained_like(), target, class_names=NAMES)
    assert target.read_text() == "before"
    assert [*tmp_path.iterdir()] == [target]


class Postprocess:
    """The part of the graph after the heads."""

    def __init__(self, info: NetworkInfo) -> None:
        self.info = info
        opset = [onnx.helper.make_opsetid("", 18)]
        model = onnx.helper.make_model(postprocess_graph(info), opset_imports=opset, ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def compare(self, logits, deltas):
        info = self.info
        boxes, scores, labels, counts = self.session.run(None, {"logits": logits, "deltas": deltas})
        ref = postprocess_detections(
            logits,
            deltas,
            info.anchors,
            score_threshold=info.limits.score_threshold,
            iou_threshold=info.limits.iou_threshold,
            topk=info.limits.topk,
            max_detections=boxes.shape[1],
            clip=(1.0, 1.0),
            activation=info.preset["activation"],
            variances=info.preset["variances"],
        )
        np.testing.assert_array_equal(counts, ref.counts)
        np.testing.assert_array_equal(labels, ref.labels)
        np.testing.assert_allclose(scores, ref.scores, **TOLERANCE)
        np.testing.assert_allclose(boxes, ref.boxes, **TOLERANCE)
        return counts


def postprocess_of(rng, limits: Limits, classes=3, anchors=300, activation="none") -> Postprocess:
    corner, size = rng.random((anchors, 2)), rng.uniform(0.05, 0.45, (anchors, 2))
    preset = {"activation": activation, "variances": (0.1, 0.2), "image_size": 256}
    boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
    return Postprocess(NetworkInfo(tuple(map(str, range(classes))), preset, boxes, limits, True, "0"))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(0.3, 0.45, topk=400, max_detections=200),
        Limits(0, 0, topk=400, max_detections=200),
        Limits(0.1, 1, topk=17, max_detections=9),
        Limits(1, 0.45, topk=400, max_detections=200),
        Limits(0.5, 0.3, topk=10_000, max_detections=10_000),
    ],
)
def test_standard_operators_give_the_results_of_ours(limits):
    """With ties too (without softmax, whose rounding would break them), and with NaN and infinity."""
    rng = np.random.default_rng(0)
    postprocess = postprocess_of(rng, limits)
    for batch in (1, 3):
        scores = np.round(rng.random((batch, 300, 4)) ** 4, 1).astype(np.float32)
        deltas = rng.normal(0, 2, (batch, 300, 4)).astype(np.float32)
        postprocess.compare(scores, deltas)
        deltas[0, ::7], deltas[-1, 1::11], deltas[0, 3::17, 2], scores[0, 5::13] = np.nan, np.inf, 1e4, np.nan
        postprocess.compare(scores, deltas)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_standard_operators_have_every_activation(activation):
    rng = np.random.default_rng(0)
    postprocess = postprocess_of(rng, Limits(0.2, 0.45, 400, 200), activation=activation)
    counts = postprocess.compare(
        rng.normal(0, 2, (2, 300, 4)).astype(np.float32), rng.normal(0, 1, (2, 300, 4)).astype(np.float32)
    )
    assert counts.min() > 10


def test_thresholds_are_exact():
    """An IoU or score equal to the threshold does not suppress or count as a detection; one bit above it does."""
    rng = np.random.default_rng(0)
    postprocess = postprocess_of(rng, Limits(0.3, 0.45, 2, 2), classes=1, anchors=2)
    anchors = np.array([[0.1, 0.1, 0.5, 0.5], [0.2, 0.1, 0.6, 0.5]], np.float32)
    scores, deltas = np.array([[[0, 0.9], [0, 0.8]]], np.float32), np.zeros((1, 2, 4), np.float32)
    info = replace(postprocess.info, anchors=anchors)
    decoded = postprocess_detections(scores[0], deltas[0], anchors, activation="none", iou_threshold=1).boxes[:2]
    iou = float(box_iou(decoded, decoded)[0, 1])
    for threshold in (iou, np.nextafter(iou, 0), np.nextafter(iou, 1), np.float32(iou) - np.spacing(np.float32(iou))):
        limits = Limits(0, float(threshold), 2, 2)
        counts = Postprocess(replace(info, limits=limits)).compare(scores, deltas)
        assert counts[0] == (2 if threshold >= iou else 1)
    for threshold in (float(scores[0, 1, 1]), 0.8, np.nextafter(float(scores[0, 1, 1]), 0)):
        Postprocess(replace(info, limits=Limits(float(threshold), 1, 2, 2))).compare(scores, deltas)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.45, 0.5, 1 / 3, 1.0])
def test_rounding_a_threshold_to_float32_changes_no_comparison(threshold):
    near = np.float32(threshold)
    for value in (np.nextafter(near, np.float32(-1)), near, np.nextafter(near, np.float32(2))):
        assert (value > at_most(threshold)) == (float(value) > threshold)


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_predicts_with_the_file_that_it_exported(files, images, limit, tmp_path, monkeypatch):
    reuse_export(monkeypatch, files.heads)
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from fastssd.cli import app

    def command(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    image, checkpoint = tmp_path / "image.png", tmp_path / "model.ckpt"
    Image.fromarray(images[0]).save(image)
    checkpoint.write_bytes(files.checkpoint.read_bytes())
    limits = ["--score-threshold", limit.low, "--nms-threshold", limit.iou]
    exported = command("export", checkpoint, "--nms", "--json", *limits)
    assert exported["path"] == str(tmp_path / "model.onnx")
    assert exported["outputs"]["boxes"] == ["batch", 200, 4]
    assert exported["difference"] < 1e-4
    found = [
        command("predict", model, image, "--out", tmp_path / "out", "--no-draw", "--json", *options)
        for model, options in ((checkpoint, limits), (tmp_path / "model.onnx", []))
    ]
    ref, comp = ([image["detections"] for image in result["images"]] for result in found)
    assert ref[0]
    for a, b in zip(comp[0], ref[0], strict=True):
        assert (a["class"], a["label"]) == (b["class"], b["label"])
        assert (a["score"], *a["box"]) == pytest.approx((b["score"], *b["box"]), rel=1e-4, abs=1e-4)
