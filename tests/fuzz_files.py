"""Files as a bad disk, a bad connection or a bad person leaves them: what they may do to whoever reads them.

    python -m tests.fuzz_files --rounds 2000 --seed 0

changes files of each kind that fastssd reads, at random but the same for the same seed, and reads them. Allowed is what
the documentation of the reader says: a result, or one of its exceptions, with the name of the file in it. Files with a
checksum may give no result but the one of the whole file. Anything else (another exception, another result, a crash, a
hang, much memory) is printed with the round that repeats it (``--only KIND --first ROUND --rounds 1``), and the exit
status is 1. ``tests/test_files.py`` runs a few rounds.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import json
import random
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastssd._preset import Preset
from fastssd.data import DataError, load_dataset
from fastssd.data.images import read_image

MEMORY = 4 << 30  # bytes by which the process may grow
HANG = 120  # seconds for one file, on a machine that does other things too


class Kind(NamedTuple):
    """A kind of file and how it is read."""

    make: Callable[[Path], Path]
    """Writes a whole file, with all that it needs, into a folder."""
    read: Callable[[Path], Any]
    """Takes that path. What it returns is compared where the file is sealed."""
    errors: tuple[type[Exception], ...]
    names: str = ""
    """What an error has to name; default the file."""
    sealed: bool = False
    text: bool = False


# --- the files -------------------------------------------------------------------------------------------------------


def picture(folder: Path, name: str = "0001.png", size: tuple[int, int] = (40, 30)) -> Path:
    from PIL import Image

    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def voc(folder: Path) -> Path:
    picture(folder / "JPEGImages")
    path = folder / "Annotations" / "0001.xml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "<annotation><filename>0001.png</filename><size><width>40</width><height>30</height></size><object>"
        "<name>cat</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>25</ymax>"
        "</bndbox></object></annotation>"
    )
    return path


def coco(folder: Path) -> Path:
    picture(folder / "train")
    path = folder / "annotations" / "instances_train.json"
    path.parent.mkdir(parents=True)
    content = {
        "images": [{"id": 1, "file_name": "0001.png", "width": 40, "height": 30}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 3, "bbox": [2, 3, 20, 25], "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    path.write_text(json.dumps(content, indent=1))
    return path


def yolo_labels(folder: Path) -> Path:
    picture(folder / "images" / "train")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nnc: 2\nnames:\n  0: cat\n  1: dog\n")
    path = folder / "labels" / "train" / "0001.txt"
    path.parent.mkdir(parents=True)
    path.write_text("0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.4 0.1 0.4 0.6\n")
    return path


def yolo_yaml(folder: Path) -> Path:
    yolo_labels(folder)
    return folder / "data.yaml"


def preset(folder: Path) -> Path:
    from fastssd.detection import TINYSSD

    path = folder / "preset.json"
    path.write_text(json.dumps(TINYSSD.to_dict()))
    return path


def small_model() -> Any:
    """A detector whose files are small, so that a change meets every part of them."""
    import torch

    from fastssd.detection import TINYSSD, TinySSD

    torch.manual_seed(0)
    return TinySSD(2), TINYSSD


def checkpoint(folder: Path) -> Path:
    import torch

    from fastssd.training.checkpoint import KEY, CheckpointInfo, save_checkpoint

    model, own = small_model()
    info = CheckpointInfo("tinyssd", ("cat", "dog"), own, {}, 1, 0, {}, None, None, [{"epoch": 1, "loss": 0.5}])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    content = {"state_dict": model.state_dict(), KEY: info.to_dict(), "optimizer_states": [optimizer.state_dict()]}
    save_checkpoint(content, folder / "best.ckpt")
    return folder / "best.ckpt"


def weights(folder: Path) -> Path:
    import torch

    torch.save(small_model()[0].state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


@functools.cache
def _exported() -> bytes:
    from fastssd.deploy.onnx_export import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(small_model()[0], f"{folder}/model.onnx", class_names=("cat", "dog"))
        return Path(folder, "model.onnx").read_bytes()


def exported(folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(_exported())
    return folder / "model.onnx"


def image(suffix: str) -> Callable[[Path], Path]:
    return lambda folder: picture(folder, f"picture.{suffix}")


# --- reading them ----------------------------------------------------------------------------------------------------


def content(value: Any) -> Any:
    """Something that two equal contents have in common, and no others."""
    import torch

    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return tuple((repr(key), content(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(content, value))
    return repr(value)


def read_dataset(path: Path) -> None:
    root = next(parent for parent in path.parents if parent.name == "data")
    dataset = load_dataset(root)
    for sample in (dataset[index] for index in range(len(dataset))):
        height, width = sample.image.shape[:2]
        assert np.isfinite(sample.boxes).all()
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= [width, height, width, height]).all()
        assert ((sample.labels >= 1) & (sample.labels <= len(dataset.class_names))).all()


def read_preset(path: Path) -> Preset:
    from fastssd.cli.common import read_preset

    made = read_preset(path)
    assert np.isfinite(made.anchors()).all()
    return made


def read_whole_checkpoint(path: Path) -> Any:
    from fastssd.training.checkpoint import load_checkpoint, read_checkpoint

    load_checkpoint(path)
    return content(read_checkpoint(path))


def read_state(path: Path) -> Any:
    from fastssd.detection.weights import read_weights

    found = read_weights(path, "tinyssd")
    return content(found.state_dict), found.preset, found.class_names


def read_exported(path: Path) -> Any:
    from fastssd.deploy import Detector

    network = Detector(path).network
    info = network.info
    return path.read_bytes(), info.class_names, info.preset, info.limits, info.nms, info.anchors.tobytes()


VALUE = (ValueError,)  # with its subclasses DataError, CheckpointError, WeightsError, DamagedFileError
KINDS = {
    "voc": Kind(voc, read_dataset, (DataError,), names="data", text=True),
    "coco": Kind(coco, read_dataset, (DataError,), names="data", text=True),
    "yolo": Kind(yolo_labels, read_dataset, (DataError,), names="data", text=True),
    "yaml": Kind(yolo_yaml, read_dataset, (DataError,), names="data", text=True),
    "preset": Kind(preset, read_preset, VALUE, text=True),
    "png": Kind(image("png"), read_image, (DataError,)),
    "jpg": Kind(image("jpg"), read_image, (DataError,)),
    "webp": Kind(image("webp"), read_image, (DataError,)),
    "tif": Kind(image("tif"), read_image, (DataError,)),
    "bmp": Kind(image("bmp"), read_image, (DataError,)),
    "checkpoint": Kind(checkpoint, read_whole_checkpoint, VALUE, sealed=True),
    "weights": Kind(weights, read_state, VALUE, sealed=True),
    "onnx": Kind(exported, read_exported, VALUE, sealed=True),
}

# --- changing them ---------------------------------------------------------------------------------------------------

WORDS = [b"-1", b"0", b"1e308", b"NaN", b"Infinity", b"null", b"true", b"[]", b"{}", b'"x"', b"&a", b"*a", b"..", b"/"]
WORDS += [b"99999999999999999999", b"[" * 3000, b"{" * 3000, b"\0", b"\xff\xfe", b"<!DOCTYPE a>", b"<object>", b"'"]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One bit is another."""
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def appended(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice([1, 8, 500]))


def swapped(data: bytes, rng: random.Random) -> bytes:
    """A part is in another place, twice, or zeros."""
    start, length = rng.randrange(len(data)), rng.choice([1, 16, 512, 4096])
    part = rng.choice([data[:length], data[-length:], bytes(length), rng.randbytes(length)])
    return data[:start] + part + data[start + rng.choice([0, len(part)]) :]


def reworded(data: bytes, rng: random.Random) -> bytes:
    """A word is another one."""
    start = rng.randrange(len(data))
    return data[:start] + rng.choice(WORDS) + data[start + rng.choice([0, 1, 4]) :]


def change(data: bytes, rng: random.Random, text: bool) -> bytes:
    ways = [flipped, flipped, truncated, appended, swapped] + [reworded] * (6 * text)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        data = rng.choice(ways)(data or b"\0", rng)
    return data


def faults(name: str, rounds: int, seed: int = 0, first: int = 0) -> Iterator[str]:
    """What readers of this kind of file did that they may not do."""
    kind = KINDS[name]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-")) / "data"
    folder.mkdir()
    try:
        path = kind.make(folder)
        whole = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = kind.read(path)
            for number in range(first, first + rounds):
                path.write_bytes(change(whole, random.Random(f"{seed} {name} {number}"), kind.text))
                faulthandler.dump_traceback_later(HANG, exit=True)
                try:
                    found = kind.read(path)
                    if kind.sealed and found != expected:
                        yield f"{name} {number}: read with other content"
                except kind.errors as error:
                    if (kind.names or path.name) not in str(error):
                        yield f"{name} {number}: names no file: {error!s:.200}"
                except Exception as error:
                    yield f"{name} {number}: {type(error).__name__}: {error!s:.200}"
                finally:
                    faulthandler.cancel_dump_traceback_later()
    finally:
        shutil.rmtree(folder.parent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="changed files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--only", choices=KINDS, action="append", help="kinds of files; default all")
    options = parser.parse_args()
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
    wrong = 0
    for name in options.only or KINDS:
        before = wrong
        for fault in faults(name, options.rounds, options.seed, options.first):
            print(fault, flush=True)
            wrong += 1
        print(f"{name}: {options.rounds} files, {wrong - before} faults", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
