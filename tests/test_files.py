"""Files that lie: damaged, truncated, hostile or too large ones are refused by name, and nothing is half written."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import torch
from PIL import Image

from fastssd._files import UnverifiedFileWarning, check_zip, seal_zip, whole_file, write_file
from fastssd._preset import Preset
from fastssd.cli.common import read_preset
from fastssd.data import DataError, load_dataset
from fastssd.data.images import read_image
from fastssd.deploy import Detector, seal
from fastssd.deploy.metadata import KEY as ONNX_INFO
from fastssd.deploy.predictions import Predictions
from fastssd.detection import TINYSSD, Criterion
from fastssd.detection.weights import WeightsError, read_weights
from fastssd.training import Augment, TrainConfig
from fastssd.training.checkpoint import KEY, CheckpointError, load_checkpoint, read_checkpoint, save_checkpoint
from tests import fuzz_files

NAMES = ("cat", "dog")

pytestmark = pytest.mark.usefixtures("one_thread_of_torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def checkpoint(folder) -> Path:
    return fuzz_files.checkpoint(folder)


@pytest.fixture(scope="module")
def exported(folder) -> Path:
    return fuzz_files.exported(folder)


@pytest.fixture(scope="module")
def weights(folder) -> Path:
    return fuzz_files.weights(folder)


# --- bit flips -------------------------------------------------------------------------------------------------------

READERS = {
    "checkpoint": fuzz_files.read_whole_checkpoint,
    "weights": fuzz_files.read_state,
    "exported": fuzz_files.read_exported,
}


@pytest.mark.parametrize("which", READERS)
def test_no_flipped_bit_is_read_as_something_else(which, request, tmp_path):
    path = request.getfixturevalue(which)
    whole, read = path.read_bytes(), READERS[which]
    expected = read(path)
    changed = tmp_path / path.name
    rng = random.Random(0)
    # Anywhere, and in the last kilobytes, which are what a file says of itself.
    places = [rng.randrange(len(whole)) for _ in range(20)] + [-rng.randrange(1, 20_000) for _ in range(40)]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << rng.randrange(8)
        changed.write_bytes(content)
        try:
            found = read(changed)
        except ValueError as error:
            named = path.name in str(error)
        else:
            named = found == expected  # nothing is made of that bit: padding
        assert named, place


@pytest.mark.parametrize("which", READERS)
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b + b"\0"])
def test_no_part_of_a_file_is_read(which, change, request, tmp_path):
    path = request.getfixturevalue(which)
    (tmp_path / path.name).write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=path.name):
        READERS[which](tmp_path / path.name)


def test_the_checksum_is_a_plain_one(checkpoint, exported):
    """Others can compare it too."""
    content = checkpoint.read_bytes()
    assert content[:-64].endswith(b"fastssd sha256 ")
    assert content[-64:].decode() == hashlib.sha256(content[:-64]).hexdigest()
    stated = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}["fastssd.sha256"]
    content = exported.read_bytes()
    assert content.count(stated.encode()) == 1
    assert stated == hashlib.sha256(content.replace(stated.encode(), b"0" * 64)).hexdigest()


def test_what_is_whole_is_read_without_a_warning(checkpoint, exported, weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnverifiedFileWarning)
        for path, read in ((checkpoint, load_checkpoint), (exported, Detector)):
            read(path)
        read_weights(checkpoint, "tinyssd")
        read_weights(weights, "tinyssd")  # every part has a CRC-32
        torch.load(checkpoint, weights_only=True)  # torch reads past the checksum


def test_files_of_before_are_read_and_said_to_be_unverified(checkpoint, exported, weights, tmp_path):
    torch.save(read_checkpoint(checkpoint), tmp_path / "old.ckpt")
    torch.save(torch.load(weights), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = onnx.load(exported)
    info = json.loads(model.metadata_props[0].value)
    del info["checksum"], model.metadata_props[2]
    model.metadata_props[0].value = json.dumps(info)
    onnx.save(model, tmp_path / "old.onnx")
    for name, read, whole in (
        ("old.ckpt", fuzz_files.read_whole_checkpoint, checkpoint),
        ("old.pth", fuzz_files.read_state, weights),
        ("old.onnx", lambda path: fuzz_files.read_exported(path)[1:], exported),
    ):
        with pytest.warns(UnverifiedFileWarning, match=name):
            found = read(tmp_path / name)
        assert repr(found).replace(name, whole.name) == repr(read(whole))


def test_a_checksum_that_got_lost_is_missed(exported, tmp_path):
    model = onnx.load(exported)
    assert model.metadata_props.pop().key == "fastssd.sha256"
    onnx.save(model, tmp_path / "lost.onnx")
    with pytest.raises(ValueError, match=r"lost\.onnx"):
        Detector(tmp_path / "lost.onnx")


def test_an_exported_file_that_was_changed_on_purpose_is_sealed_again(exported, tmp_path):
    model = onnx.load(exported)
    model.doc_string = "changed"
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ValueError, match=r"changed\.onnx"):
        Detector(tmp_path / "changed.onnx")
    seal(tmp_path / "changed.onnx")
    assert Detector(tmp_path / "changed.onnx").class_names == NAMES


def test_the_rest_of_an_archive_may_not_matter_to_its_checksum():
    """An archive that was not written by torch is sealed and read all the same."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"b" * 1000)
    seal_zip(file)
    assert check_zip(file, "a.zip")
    assert zipfile.ZipFile(file).read("a") == b"b" * 1000


# --- what a file states ----------------------------------------------------------------------------------------------


def repacked(path: Path, target: Path, compression: int) -> Path:
    """The archive with the same members, each as often as it may, compressed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + (b"\0" * 50_000_000 if name.endswith("data/0") else b""))
    return target


def test_an_archive_takes_no_more_memory_than_it_is_large(checkpoint, weights, tmp_path):
    bomb = repacked(checkpoint, tmp_path / "bomb.ckpt", zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt"):
        load_checkpoint(bomb)
    bomb = repacked(weights, tmp_path / "bomb.pth", zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match=r"bomb\.pth"):
        read_weights(bomb, "tinyssd")
    state = torch.load(weights)
    torch.save(state | {"head.boxes.0.bias": torch.zeros(1).expand(10**12)}, tmp_path / "strides.pth")
    with pytest.raises(WeightsError, match=r"strides\.pth"):
        read_weights(tmp_path / "strides.pth", "tinyssd")


def test_torchs_oldest_format_is_not_opened(tmp_path):
    """That of 2016, which is unpacked on to the disk before anything is checked."""
    with tarfile.open(tmp_path / "old.pth", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(WeightsError, match=r"old\.pth"):
        read_weights(tmp_path / "old.pth", "tinyssd")


WRONG_PRESETS = [
    ("nms_threshold", 7),
    ("nms_threshold", "0.5"),
    ("score_threshold", float("nan")),
    ("std", [0, 0, 0]),
    ("std", [0.1, 0.1]),
    ("mean", [0.5, 0.5, float("inf")]),
    ("grid_sizes", [[10_000, 10_000]] * 5),
    ("grid_sizes", [[300, 2]] * 5),
    ("grid_sizes", 2),
    ("image_size", 20_000),
    ("image_size", 256.5),
    ("image_size", True),
    ("image_size", None),
    ("scales", [[-1.0, 0.2]] * 5),
    ("aspect_ratios", [[]] * 5),
    ("variances", [0, 0.2]),
    ("activation", "relu"),
    ("steps", [0, 1, 2, 3, 4]),
    ("clip", ["none"]),
    ("topk", 0),
    ("max_detections", 10**9),
    ("name", "../../etc/passwd"),
    ("name", 5),
]


@pytest.mark.parametrize(("key", "value"), WRONG_PRESETS)
def test_a_preset_is_checked_whole_on_every_way_in(key, value, checkpoint, exported, tmp_path):
    with pytest.raises(ValueError, match=key):
        replace(TINYSSD, **{key: value})
    wrong = TINYSSD.to_dict() | {key: value}
    with pytest.raises(ValueError, match=key):
        Preset.from_dict(wrong)
    with pytest.raises(ValueError, match=rf"(?s)preset.*{key}"):
        TrainConfig.from_dict({"preset": wrong})

    file = tmp_path / "preset.json"
    file.write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=r"preset\.json"):
        read_preset(file)

    content = read_checkpoint(checkpoint)
    content[KEY]["preset"] = wrong
    save_checkpoint(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=rf"(?s)x\.ckpt.*{key}"):
        load_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match=rf"(?s)x\.ckpt.*{key}"):
        read_weights(tmp_path / "x.ckpt", "tinyssd")

    with pytest.raises(ValueError, match=r"x\.onnx"):
        Detector(with_info(exported, tmp_path / "x.onnx", preset=wrong))


def with_info(exported: Path, target: Path, **changed: object) -> Path:
    """The exported file with other metadata, whole otherwise."""
    model = onnx.load(exported)
    entry = next(entry for entry in model.metadata_props if entry.key == ONNX_INFO)
    entry.value = json.dumps(json.loads(entry.value) | changed)
    onnx.save(model, target)
    seal(target)
    return target


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_names", ["cat"]),  # the network has two
        ("class_names", "cat"),
        ("class_names", [1, 2]),
        ("class_names", []),
        ("preset", None),
        ("preset", TINYSSD.to_dict() | {"image_size": 320}),
        ("limits", {"score_threshold": 0.3}),
        ("limits", {"score_threshold": 2, "iou_threshold": 0.5, "topk": 1, "max_detections": 1}),
        ("nms", 1),
        ("nms", True),
        ("version", None),
        ("format", "1"),
    ],
)
def test_metadata_is_checked_whole(key, value, exported, tmp_path):
    with pytest.raises(ValueError, match=r"x\.onnx"):
        Detector(with_info(exported, tmp_path / "x.onnx", **{key: value}))


@pytest.mark.parametrize(
    "key", ["model", "class_names", "preset", "config", "epoch", "batches", "partial", "best", "history"]
)
@pytest.mark.parametrize("value", [float("nan"), -1, [[1]], "missing"])
def test_what_a_checkpoint_says_of_itself_is_checked_whole(key, value, checkpoint, tmp_path):
    content = read_checkpoint(checkpoint)
    if value == "missing":
        del content[KEY][key]
    else:
        content[KEY][key] = value
    save_checkpoint(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        load_checkpoint(tmp_path / "x.ckpt")


def test_a_link_to_itself_ends(checkpoint, tmp_path):
    content = read_checkpoint(checkpoint)
    content[KEY]["history"].append({"self": content[KEY]["history"]})
    save_checkpoint(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        load_checkpoint(tmp_path / "x.ckpt")
    many = [0]
    for _ in range(18):
        many = [many] * 10  # 10^18 values, which take no memory until somebody goes through them
    content[KEY]["history"] = [{"many": many}]
    save_checkpoint(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        load_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TrainConfig, {"lr": float("nan")}),
        (TrainConfig, {"lr": float("inf")}),
        (TrainConfig, {"epochs": 2.5}),
        (TrainConfig, {"batch_size": "16"}),
        (TrainConfig, {"weight_decay": -1}),
        (TrainConfig, {"multi_scale": (20_000,)}),
        (TrainConfig, {"seed": -1}),
        (TrainConfig, {"nms_threshold": 7}),
        (TrainConfig, {"cache": "yes"}),
        (TrainConfig, {"freeze": "backbone"}),
        (TrainConfig, {"criterion": {"iou_threshold": 2}}),
        (TrainConfig, {"augment": None}),
        (Criterion, {"iou_threshold": float("nan")}),
        (Criterion, {"background_threshold": 0.9}),
        (Criterion, {"neg_pos_ratio": -1}),
        (Criterion, {"class_weights": (1, -1)}),
        (Augment, {"zoom": float("nan")}),
        (Augment, {"flip": "0.5"}),
    ],
)
def test_choices_of_a_training_are_checked_whole(kind, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        kind(**values)
    if kind is TrainConfig:
        with pytest.raises(ValueError, match=next(iter(values))):
            TrainConfig.from_dict(values)


def test_numbers_and_lists_of_others_are_taken_as_ours():
    given = replace(TINYSSD, image_size=np.int64(256), std=[1, 1, 1], mean=np.zeros(3), grid_sizes=[[32, 32]] * 5)
    assert given.to_dict() == json.loads(json.dumps(given.to_dict())) | {
        name: getattr(given, name) for name in ("grid_sizes", "scales", "aspect_ratios", "variances", "mean", "std")
    }
    assert type(given.image_size) is int
    assert given.std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "NaN", "[1, 2]", '{"name": Infinity}', "\udcff"])
def test_json_that_is_none_is_named(text, tmp_path):
    (tmp_path / "p.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"p\.json"):
        read_preset(tmp_path / "p.json")


@pytest.mark.parametrize(
    "text",
    [
        "train: images\nnc: [2]\nnames: [cat]",
        "train: images\nnc: &a [*a]\nnames: [cat]",
        "train: images\nnames: &a [*a]",
        "train: images\nnames: &a {0: *a}",
        "train: &a [*a]\nnames: [cat]",
        "train: images\nnames: " + "[" * 5000,
        "? [a]\n: 1\nnames: [cat]",
    ],
)
def test_yaml_with_links_to_itself_is_named(text, tmp_path):
    fuzz_files.yolo_labels(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml"):
        load_dataset(tmp_path)


def test_a_few_bytes_are_no_large_picture(exported, tmp_path):
    """A hundred million pixels in a few kilobytes: refused, and the pictures beside it go on."""
    bomb, good = tmp_path / "bomb.webp", fuzz_files.picture(tmp_path)
    Image.new("RGB", (10_000, 10_000)).save(bomb, lossless=True, method=0)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb\.webp"):
        read_image(bomb)
    found = [*Detector(exported).stream([bomb, good], on_error="return")]
    assert isinstance(found[0], DataError)
    assert found[1].size == (30, 40)


def test_large_plain_pictures_are_pictures(tmp_path):
    for name in ("white.jpg", "white.png"):
        Image.new("RGB", (4000, 4000), "white").save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (4000, 4000, 3)


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writers(checkpoint):
    """What writes a file, by the kind of writing: through torch, bytes, text, and one that only grows."""
    content = read_checkpoint(checkpoint)

    def text(path: Path) -> None:
        with whole_file(path) as file:
            for number in range(20_000):
                file.write(f"{number}\n")

    def lines(path: Path) -> None:
        with Predictions(path.parent, {"batch_size": 1}, {}) as open_:
            open_.write([{"image": "x" * 100_000}] * 10)

    return {
        "last.ckpt": lambda path: save_checkpoint(content, path),
        "bytes.bin": lambda path: write_file(path, lambda file: file.write(b"x" * 500_000)),
        "text.json": text,
        "predictions.jsonl": lines,
    }


def _full_disk():
    """Every file ends after 50,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def _not_root():
    if os.geteuid() == 0:
        os.setuid(65534)


def _write(prepare, write, path, say):
    """In a process of its own."""
    prepare()
    try:
        write(path)
    except OSError as error:
        say.send((error.errno, error.filename))
    except BaseException as error:
        say.send(repr(error))
    else:
        say.send("written")


@pytest.mark.parametrize(
    ("name", "prepare", "number"),
    [
        ("last.ckpt", _full_disk, errno.EFBIG),
        ("bytes.bin", _full_disk, errno.EFBIG),
        ("text.json", _full_disk, errno.EFBIG),
        ("predictions.jsonl", _full_disk, errno.EFBIG),
        ("bytes.bin", _not_root, errno.EACCES),
        ("text.json", _not_root, errno.EACCES),
    ],
)
def test_what_cannot_be_written_names_the_file_and_leaves_the_one_before(name, prepare, number, writers, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / name
    path.write_text("" if name == "predictions.jsonl" else "before")
    before = path.read_text()
    if number == errno.EACCES:
        folder.chmod(0o500)
    process = multiprocessing.get_context("fork")
    heard, say = process.Pipe()
    writer = process.Process(target=_write, args=(prepare, writers[name], path, say), daemon=True)
    writer.start()
    assert heard.recv() == (number, str(path))
    writer.join()
    folder.chmod(0o700)
    if name != "predictions.jsonl":  # it grows, and --resume cuts off what is not whole
        assert path.read_text() == before
        assert [*folder.iterdir()] == [path]


def test_another_error_stays_itself(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyError

    with pytest.raises(KeyError):
        write_file(tmp_path / "x", fail)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(OSError, match="while writing") as caught:
        write_file(tmp_path, lambda file: file.write(b"a folder is in the way"))
    assert caught.value.filename == str(tmp_path)


def _keep_writing(write, path, first):
    while True:
        write(path)
        first.set()


@pytest.mark.parametrize("name", ["last.ckpt", "bytes.bin", "text.json"])
def test_a_kill_at_any_moment_leaves_a_whole_file(name, writers, tmp_path):
    path = tmp_path / name
    write = writers[name]
    write(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    process = multiprocessing.get_context("fork")
    for _ in range(6):
        first = process.Event()
        writer = process.Process(target=_keep_writing, args=(write, path, first))
        writer.start()
        first.wait()  # it is at work: the moment is any, whatever the machine
        time.sleep(rng.uniform(0, 0.05))
        writer.kill()
        writer.join()
        assert path.read_bytes() == whole


# --- first use, and chance -------------------------------------------------------------------------------------------

_FIRST_USE = """
import sys, threading
from fastssd import Detector
path, picture = sys.argv[1:]
start, found, shared = threading.Barrier(4), [], []
def use(detector):
    start.wait()
    detector = detector or Detector(path)
    found.append(detector(picture).to_dict())
shared = [Detector(path)] * 2 + [None] * 2
threads = [threading.Thread(target=use, args=(each,), daemon=True) for each in shared]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(found) == 4 and all(each == found[0] for each in found)
"""


def test_the_first_use_may_come_from_threads(exported, tmp_path):
    """New processes, in which threads are the first to detect, with a detector of their own or a shared one."""
    picture = fuzz_files.picture(tmp_path)
    for _ in range(6):
        command = [sys.executable, "-c", _FIRST_USE, str(exported), str(picture)]
        subprocess.run(command, check=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("name", fuzz_files.KINDS)
def test_whatever_a_file_holds_only_its_own_errors_come(name):
    assert not [*fuzz_files.faults(name, 15 if fuzz_files.KINDS[name].sealed else 60)]
