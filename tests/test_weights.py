"""Weights of other projects: the same outputs as in their own network, and files that are right or wrong."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from fastssd.detection import SSD300, SSD300_VOC, SSD512, TINYSSD, build_model, detect_batch  # noqa: E402
from fastssd.detection.weights import (  # noqa: E402
    COCO_80,
    COCO_91,
    PUBLISHED,
    VOC_20,
    WeightsError,
    load_weights,
    read_weights,
)
from fastssd.detection.weights.download import fetch  # noqa: E402
from tests.seeded import seeded_image, seeded_state, seeded_tensor  # noqa: E402

GOLDEN = json.loads((Path(__file__).parent / "golden" / "models.json").read_text())
DETECTORS = ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large")

pytestmark = pytest.mark.usefixtures("one_thread_of_torch")


def saved(state, path):
    torch.save(state, path)
    return path


@torch.no_grad()
def outputs(model, size):
    logits, deltas = model.eval()(seeded_image(size))
    return logits[0], deltas[0]


# --- torchvision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
def test_torchvisions_state_dict_gives_torchvisions_outputs(name, tmp_path):
    ref = GOLDEN[name]
    model = build_model(name, weights=saved(seeded_state(ref["shapes"]), tmp_path / "torchvision.pth"))
    size, rows = model.preset.image_size, ref["rows"]
    logits, deltas = outputs(model, size)
    # 1e-5 holds on one machine, as below; the convolutions of other machines add in another order.
    torch.testing.assert_close(logits[rows, :5], torch.tensor(ref["logits"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deltas[rows], torch.tensor(ref["deltas"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.anchors[rows], torch.tensor(ref["anchors"]), rtol=0, atol=2e-6)

    (found,) = detect_batch(model, seeded_image(size), [(size, size)])
    same_detections(found, ref["detections"], ref["count"])
    assert found.names(model.class_names)[0] == COCO_91[ref["detections"]["labels"][0] - 1]


def same_detections(found, ref, count):
    """Compare the best detections; those with nearly equal scores may be in another order."""
    best = slice(len(ref["scores"]))
    assert len(found.scores) == count
    np.testing.assert_allclose(found.scores[best], ref["scores"], rtol=0, atol=5e-5)
    comp, ref = (
        sorted([label, *np.round(box, 1), score] for box, score, label in zip(*parts, strict=True))
        for parts in (
            (found.boxes[best].tolist(), found.scores[best].tolist(), found.labels[best].tolist()),
            (ref["boxes"], ref["scores"], ref["labels"]),
        )
    )
    np.testing.assert_allclose(comp, ref, rtol=0, atol=0.11)  # boxes are rounded to tenths of a pixel to sort them


@pytest.mark.parametrize("name", DETECTORS)
def test_torchvision_itself_agrees(name, tmp_path):
    try:
        import torchvision.models.detection as torchvision
    except Exception as error:  # of any kind, if its operators do not fit this torch
        pytest.skip(f"torchvision: {error}")
    torch.manual_seed(0)
    theirs = getattr(torchvision, name)(weights=None, weights_backbone=None)
    theirs.load_state_dict(seeded_state({key: value.shape for key, value in theirs.state_dict().items()}))
    model = build_model(name, weights=saved(theirs.eval().state_dict(), tmp_path / "torchvision.pth"))
    size = model.preset.image_size
    images = seeded_image(size)
    logits, deltas = outputs(model, size)
    with torch.no_grad():
        ref = theirs.head(list(theirs.backbone(theirs.transform(list(images))[0].tensors).values()))
        (expected,) = theirs(list(images))
    torch.testing.assert_close(logits, ref["cls_logits"][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(deltas, ref["bbox_regression"][0], rtol=1e-5, atol=1e-5)
    (found,) = detect_batch(model, images, [(size, size)])
    same_detections(found, {key: value.tolist() for key, value in expected.items()}, len(expected["scores"]))


@pytest.mark.parametrize(
    ("file", "name", "example", "theirs"),
    [
        ("vgg16", "ssd300_vgg16", "backbone.vgg.28.weight", "features.28.weight"),
        ("vgg16", "ssd512_vgg16", "backbone.vgg.0.bias", "features.0.bias"),
        (
            "mobilenet_v3_large",
            "ssdlite320_mobilenet_v3_large_full",
            "backbone.1.0.3.0.weight",
            "features.13.block.3.0.weight",
        ),
    ],
)
def test_torchvisions_backbones(file, name, example, theirs, tmp_path):
    state = seeded_state(GOLDEN[file]["shapes"]) | {"classifier.0.weight": torch.zeros(3)}
    weights = read_weights(saved(state, tmp_path / "backbone.pth"), name)
    model = build_model(name, 3)
    report = load_weights(model, weights)
    assert len(report.loaded) == len(state) - 1
    assert torch.equal(model.state_dict()[example], state[theirs])
    assert "head.classes.0" in " ".join(report.initialised)
    assert not report.new_classes
    with pytest.raises(ValueError, match="num_classes"):
        build_model(name, weights=tmp_path / "backbone.pth")


# --- ssd.pytorch and lufficc/SSD ---------------------------------------------------------------------------------

VGG = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
POOLS = {4: False, 9: False, 16: True, 23: False}
EXTRAS = {  # out channels, kernel, stride, padding
    300: ((256, 1, 1, 0), (512, 3, 2, 1), (128, 1, 1, 0), (256, 3, 2, 1), *((128, 1, 1, 0), (256, 3, 1, 0)) * 2),
    512: ((256, 1, 1, 0), (512, 3, 2, 1), *((128, 1, 1, 0), (256, 3, 2, 1)) * 3, (128, 1, 1, 0), (256, 4, 1, 1)),
}
BOXES = {300: (4, 6, 6, 6, 4, 4), 512: (4, 6, 6, 6, 6, 4, 4)}
NAMES = {  # by project: names of the VGG layers, the extras, the norm, and the heads for boxes and classes
    "ssd.pytorch": ("vgg", "extras", "L2Norm", "loc", "conf"),
    "lufficc": (
        "backbone.vgg",
        "backbone.extras",
        "backbone.l2_norm",
        "box_head.predictor.reg_headers",
        "box_head.predictor.cls_headers",
    ),
}


def foreign_state(project, size, columns):
    """A state dict in the layout of a project, made from the description of its network."""
    vgg, extras, norm, loc, conf = NAMES[project]
    shapes, width = {f"{norm}.weight": (512,)}, 3

    def layer(name, out, inputs, kernel):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inputs, kernel, kernel), (out,)

    for number, out in VGG.items():
        layer(f"{vgg}.{number}", out, width, 3)
        width = out
    layer(f"{vgg}.31", 1024, 512, 3)
    layer(f"{vgg}.33", 1024, 1024, 1)
    widths, width = [512, 1024], 1024
    for number, (out, kernel, _, _) in enumerate(EXTRAS[size]):
        layer(f"{extras}.{number}", out, width, kernel)
        width = out
        widths += [out] * (number % 2)
    for number, (inputs, anchors) in enumerate(zip(widths, BOXES[size], strict=True)):
        layer(f"{loc}.{number}", anchors * 4, inputs, 3)
        layer(f"{conf}.{number}", anchors * columns, inputs, 3)
    return {name: seeded_tensor(name, shape) for name, shape in shapes.items()}


def foreign_outputs(project, size, columns, state, x):
    """The forward pass of a project: pixels from 0 to 255, mean subtracted, flat lists of layers."""
    vgg, extras, norm, loc, conf = NAMES[project]

    def layer(name, x, **options):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    x = 255 * x - torch.tensor([123.0, 117.0, 104.0]).view(3, 1, 1)
    sources = []
    for number in range(30):
        if number in VGG:
            x = layer(f"{vgg}.{number}", x, padding=1).relu()
        elif number in POOLS:
            x = F.max_pool2d(x, 2, 2, ceil_mode=POOLS[number])
        if number == 22:
            length = x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10
            sources.append(state[f"{norm}.weight"].view(1, -1, 1, 1) * (x / length))
    x = F.max_pool2d(x, 3, 1, 1)
    x = layer(f"{vgg}.33", layer(f"{vgg}.31", x, padding=6, dilation=6).relu()).relu()
    sources.append(x)
    for number, (_, _, stride, padding) in enumerate(EXTRAS[size]):
        x = layer(f"{extras}.{number}", x, stride=stride, padding=padding).relu()
        if number % 2:
            sources.append(x)
    out = []
    for head, width in ((conf, columns), (loc, 4)):
        maps = [layer(f"{head}.{k}", x, padding=1).permute(0, 2, 3, 1).flatten(1) for k, x in enumerate(sources)]
        out.append(torch.cat(maps, 1).view(-1, width))
    return out


def foreign_priors(size, grids, steps, lows, highs, ratios):
    """PriorBox of both projects: cx, cy, w, h, all clamped to [0, 1]."""
    priors = []
    for grid, step, low, high, others in zip(grids, steps, lows, highs, ratios, strict=True):
        for row, column in product(range(grid), repeat=2):
            center = [(column + 0.5) * step / size, (row + 0.5) * step / size]
            priors.append([*center, low / size, low / size])
            priors.append([*center, *[(low * high) ** 0.5 / size] * 2])
            for ratio in others:
                wide, narrow = low / size * ratio**0.5, low / size / ratio**0.5
                priors += [[*center, wide, narrow], [*center, narrow, wide]]
    return torch.tensor(priors).clamp(0, 1)


R4, R6 = (2,), (2, 3)
PRIORS_300 = ((38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300))
RATIOS_300, RATIOS_512 = (R4, R6, R6, R6, R4, R4), (R4, R6, R6, R6, R6, R4, R4)
VOC_300 = (*PRIORS_300, (30, 60, 111, 162, 213, 264), (60, 111, 162, 213, 264, 315), RATIOS_300)
COCO_300 = (*PRIORS_300, (21, 45, 99, 153, 207, 261), (45, 99, 153, 207, 261, 315), RATIOS_300)
COCO_512 = (
    (64, 32, 16, 8, 4, 2, 1),
    (8, 16, 32, 64, 128, 256, 512),
    (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8),
    (51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
    RATIOS_512,
)


@pytest.mark.parametrize(
    ("project", "size", "columns", "priors", "preset", "class_names"),
    [
        ("ssd.pytorch", 300, 21, VOC_300, SSD300_VOC, VOC_20),
        ("lufficc", 300, 81, COCO_300, SSD300, COCO_80),
        ("lufficc", 512, 81, COCO_512, SSD512, COCO_80),
    ],
    ids=["ssd.pytorch-voc", "lufficc-coco", "lufficc-512"],
)
def test_files_of_ssd_pytorch_and_lufficc(project, size, columns, priors, preset, class_names, tmp_path):
    state = foreign_state(project, size, columns)
    content = {"model": state, "iteration": 3} if project == "lufficc" else {f"module.{k}": v for k, v in state.items()}
    path = saved(content, tmp_path / "foreign.pth")
    model = build_model(f"ssd{size}_vgg16", weights=path)
    assert model.preset == replace(preset, clip="all")
    assert model.class_names == class_names
    logits, deltas = outputs(model, size)
    ref_logits, ref_deltas = foreign_outputs(project, size, columns, state, seeded_image(size))
    # Our mean is 0.48235, which is 123 / 255 rounded to five digits: pixels differ by 1e-3 of 255.
    torch.testing.assert_close(logits, ref_logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(deltas, ref_deltas, rtol=1e-3, atol=1e-3)

    center_form = foreign_priors(size, *priors)
    corners = torch.cat([center_form[:, :2] - center_form[:, 2:] / 2, center_form[:, :2] + center_form[:, 2:] / 2], 1)
    torch.testing.assert_close(model.anchors, corners, rtol=0, atol=1e-6)
    wrong = f"ssd{812 - size}_vgg16"
    with pytest.raises(WeightsError, match=f"ssd{size}_vgg16"):
        read_weights(path, wrong)


def test_the_reduced_vgg_of_ssd_pytorch(tmp_path):
    state = foreign_state("ssd.pytorch", 300, 21)
    state = {name.removeprefix("vgg."): value for name, value in state.items() if name.startswith("vgg.")}
    model = build_model("ssd300_vgg16", 2, weights=saved(state, tmp_path / "reducedfc.pth"))
    assert torch.equal(model.backbone.vgg[33].weight, state["33.weight"])


# --- other classes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    state = seeded_state(GOLDEN["ssdlite320_mobilenet_v3_large"]["shapes"])
    return saved(state, tmp_path_factory.mktemp("weights") / "lite.pth")


def test_class_heads_are_initialised_for_new_classes_only(lite):
    name = "ssdlite320_mobilenet_v3_large"
    whole, weights = build_model(name, weights=lite), read_weights(lite, name)
    assert whole.class_names == COCO_91
    size = whole.preset.image_size
    logits, deltas = outputs(whole, size)

    model = build_model(name, class_names=("dog", "unicorn", "person"))
    before = model.head.classes[0][1].weight.detach().clone().unflatten(0, (6, 4))  # [anchors, C, ...]
    report = load_weights(model, weights)
    comp, comp_deltas = outputs(model, size)
    torch.testing.assert_close(comp_deltas, deltas)
    torch.testing.assert_close(comp[:, [0, 1, 3]], logits[:, [0, 1 + COCO_91.index("dog"), 1]])
    after = model.head.classes[0][1].weight.unflatten(0, (6, 4))
    assert torch.equal(after[:, 2], before[:, 2])  # of the unicorn
    assert not torch.equal(after[:, 1], before[:, 1])
    assert report.new_classes == ("unicorn",)
    assert "unicorn" in str(report)
    assert "head.classes.0" in str(report)
    assert f"{len(report.loaded) - 12} of {len(report.loaded)}" in str(report)  # 6 maps, weight and bias

    nameless = build_model(name, 90)
    assert load_weights(nameless, weights).new_classes == ()
    renamed = build_model(name, class_names=[f"part {number}" for number in range(90)])
    assert len(load_weights(renamed, weights).new_classes) == 90
    focal = build_model(name, preset=replace(whole.preset, activation="sigmoid"), class_names=COCO_91)
    assert len(load_weights(focal, weights).new_classes) == 90


def test_other_anchors_make_new_heads_for_their_maps(lite):
    name = "ssdlite320_mobilenet_v3_large"
    preset = build_model(name, 1).preset
    preset = replace(preset, scales=((0.1, 0.15, 0.2), *preset.scales[1:]))
    model = build_model(name, preset=preset, class_names=COCO_91)
    report = load_weights(model, read_weights(lite, name))
    assert {key for key in report.initialised if "boxes" in key} == {"head.boxes.0.1.weight", "head.boxes.0.1.bias"}


# --- files -------------------------------------------------------------------------------------------------------


def test_wrong_files_are_errors_that_name_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="COCO_V1"):
        read_weights("COCO_V2", "ssd300_vgg16")
    with pytest.raises(FileNotFoundError):
        read_weights("COCO_V1", "tinyssd")
    (tmp_path / "text.pth").write_text("404: Not Found")
    saved({"layer.weight": torch.zeros(1)}, tmp_path / "unknown.pth")
    saved(
        {"vgg.0.weight": torch.zeros(1), "L2Norm.weight": torch.zeros(1), "ghost": torch.zeros(1)}, tmp_path / "g.pth"
    )
    torch.save(torch.nn.Linear(1, 1), tmp_path / "pickled.pth")  # a module: reading it would run code
    for file, named in (("text", "text"), ("unknown", "layer.weight"), ("g", "ghost"), ("pickled", "pickled")):
        with pytest.raises(WeightsError, match=named):
            read_weights(tmp_path / f"{file}.pth", "ssd300_vgg16")


CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class _Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if "missing" in self.path:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // (2 if "broken" in self.path else 1)])
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    server.requests = []
    threading.Thread(target=functools.partial(server.serve_forever, 0.05), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_downloads_are_checked_and_kept(server, tmp_path):
    address = f"http://127.0.0.1:{server.server_port}"
    folder = tmp_path / "hub" / "checkpoints"
    path = fetch(f"{address}/net-{DIGEST[:8]}.pth")
    assert path == folder / f"net-{DIGEST[:8]}.pth"
    assert path.read_bytes() == CONTENT
    assert fetch(f"{address}/net-{DIGEST[:8]}.pth") == path
    assert len(server.requests) == 1

    for wrong in ("net-00000000.pth", f"broken-{DIGEST[:8]}.pth", f"missing-{DIGEST[:8]}.pth"):
        with pytest.raises(WeightsError, match=wrong):
            fetch(f"{address}/{wrong}")
        assert [file.name for file in folder.iterdir()] == [path.name]

    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="delete"):
        fetch(f"{address}/net-{DIGEST[:8]}.pth")


def test_published_weights_are_downloaded_by_name(server, tmp_path, monkeypatch):
    state = seeded_state(GOLDEN["ssdlite320_mobilenet_v3_large"]["shapes"])
    content = saved(state, tmp_path / "file").read_bytes()
    monkeypatch.setattr(f"{__name__}.CONTENT", content)
    name = f"ssdlite-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(PUBLISHED["ssdlite320_mobilenet_v3_large"], "COCO_V1", name)
    monkeypatch.setattr("fastssd.detection.weights.ADDRESS", f"http://127.0.0.1:{server.server_port}/")
    model = build_model("ssdlite320_mobilenet_v3_large", weights="COCO_V1")
    assert model.class_names == COCO_91
    assert server.requests == [f"/{name}"]


# --- fine-tuning ---------------------------------------------------------------------------------------------------


def test_training_starts_from_weights_and_does_not_change_frozen_modules(tmp_path):
    pytest.importorskip("lightning")
    from fastssd.data import shapes_dataset
    from fastssd.training import TrainConfig, load_checkpoint, train

    small = replace(TINYSSD, image_size=64, grid_sizes=((8, 8), (4, 4), (2, 2), (1, 1), (1, 1)))
    data = shapes_dataset(4, seed=0, image_size=64)
    config = TrainConfig(preset=small, epochs=1, batch_size=2, num_workers=0, accelerator="cpu")
    options = {"progress": False, "report_line": lambda line: None}
    first = train(config, data, data, tmp_path / "first", **options).last_checkpoint

    reported = []
    config = replace(config, preset=None, weights=str(first), freeze=("backbone.[01]",))
    second = train(config, data, data, tmp_path / "second", **(options | {"report_line": reported.append}))
    before, after = (load_checkpoint(path)[0] for path in (first, second.last_checkpoint))
    assert after.preset == small  # that of the weights
    assert after.class_names == tuple(data.class_names)
    assert "weights of" in reported[0]
    assert "backbone.[01]" in reported[1]
    same = {name for name, value in after.state_dict().items() if torch.equal(value, before.state_dict()[name])}
    frozen = {name for name in same if name.startswith(("backbone.0.", "backbone.1."))}
    assert same == frozen  # with their running means
    assert len(frozen) == 4 * 2 * 6

    reported.clear()
    config = replace(config, epochs=2)
    train(config, data, data, resume=tmp_path / "second", **(options | {"report_line": reported.append}))
    assert not any("weights of" in line for line in reported)  # a resumed run continues with its own

    with pytest.raises(ValueError, match="backbone"):
        build_model("tinyssd", 1).freeze("bakcbone")
