"""Detect in the images of a folder on one machine or many, with Ray Data: each actor holds a detector.

    python examples/ray_predict.py [MODEL FOLDER OUT [ACTORS]]

MODEL is an ONNX file or a checkpoint. On a cluster (RAY_ADDRESS has its address) every machine must see all three
paths. Without arguments a small folder is made, and the actors' results are compared with those of one detector.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

missing = [name for name in ("ray", "pyarrow", "torch") if importlib.util.find_spec(name) is None]
if missing:
    print("skipped: needs", ", ".join(missing))
    sys.exit()

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as parquet  # noqa: E402
import ray  # noqa: E402

import fastssd  # noqa: E402
from fastssd.deploy.coco import write_images, write_results  # noqa: E402

FOUND = pa.struct({"class": pa.string(), "label": pa.int64(), "score": pa.float64(), "box": pa.list_(pa.float64())})
ROWS = pa.schema(
    {
        "image": pa.string(),
        "width": pa.int64(),
        "height": pa.int64(),
        "detections": pa.list_(FOUND),
        "error": pa.string(),  # for an image that cannot be read; it has no detections
    }
)


class Detect:
    """Each actor opens the model once. It has one CPU, so its network uses one thread."""

    def __init__(self, model: str) -> None:
        self.detector = fastssd.Detector(model, threads=1)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        found = self.detector.stream(batch["bytes"], on_error="return")
        rows = [
            {"image": path} | ({"error": str(each)} if isinstance(each, ValueError) else each.to_dict())
            for path, each in zip(batch["path"], found, strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=ROWS)


def detect_folder(model: str, folder: str, parts: str, actors: int) -> None:
    """Each actor writes its own results: no machine handles all data, and nothing stays in memory for long."""
    images = ray.data.read_binary_files(folder, include_paths=True)
    found = images.map_batches(
        Detect,
        fn_constructor_args=(model,),
        batch_size=32,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    found.write_parquet(parts)


def rows_of(parts: str):
    for part in sorted(Path(parts).glob("*.parquet")):
        for batch in parquet.ParquetFile(part).iter_batches():
            yield from batch.to_pylist()


def main(model: str, folder: str, out: str, actors: int = 2) -> None:
    if os.path.exists(f"{out}/parts"):
        sys.exit(f"{out}/parts exists already, and results would be added to it; choose another OUT")
    # Without a cluster: a CPU for each actor and one for reading, and little memory for data between them.
    local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": actors + 1, "object_store_memory": 256 << 20}
    ray.init(include_dashboard=False, log_to_driver=False, **local)
    try:
        detect_folder(model, folder, f"{out}/parts", actors)
    finally:
        ray.shutdown()
    names = fastssd.Detector(model).class_names
    written = write_results(Path(out, "coco_detections.json"), rows_of(f"{out}/parts"))
    write_images(Path(out, "coco_images.json"), rows_of(f"{out}/parts"), names)
    print(f"{written.detections} boxes in {out}/coco_detections.json")


def small_folder(place: Path) -> tuple[str, str]:
    """A model and a folder of images, one of which is broken."""
    import torch
    from PIL import Image

    from fastssd.data import shapes_dataset
    from fastssd.training.checkpoint import KEY, CheckpointInfo, save_checkpoint

    torch.manual_seed(0)
    data = shapes_dataset(12)
    network = fastssd.TinySSD(len(data.class_names))
    with torch.no_grad():
        for conv in network.head.classes:
            conv.weight *= 15  # untrained, but with some scores as high as after training
    info = CheckpointInfo("tinyssd", data.class_names, network.preset, {}, 1, 0, {}, None, None, [])
    save_checkpoint({"state_dict": network.state_dict(), KEY: info.to_dict()}, place / "model.ckpt")
    (place / "images").mkdir()
    for index, sample in enumerate(data):
        Image.fromarray(sample.image).save(place / "images" / f"{index:02}.png")
    (place / "images" / "broken.png").write_bytes(b"not an image")
    return str(place / "model.ckpt"), str(place / "images")


def compare(model: str, out: str) -> None:
    detector = fastssd.Detector(model)
    rows = list(rows_of(f"{out}/parts"))
    failed = [Path(row["image"]).name for row in rows if row["error"] is not None]
    assert failed == ["broken.png"]
    for row in rows:
        if row["error"] is None:
            here = detector(row["image"])
            assert [found["class"] for found in row["detections"]] == list(here.names)
            boxes = np.reshape([found["box"] for found in row["detections"]], (-1, 4))
            np.testing.assert_allclose(boxes, here.boxes, rtol=1e-4, atol=1e-2)
    print(f"{len(rows) - len(failed)} images: the actors find the same as a detector here; {failed[0]} is broken")


if len(sys.argv) > 1:
    model, folder, out, *actors = sys.argv[1:]
    main(model, folder, os.path.abspath(out), *map(int, actors))
else:
    with tempfile.TemporaryDirectory() as temporary:
        model, folder = small_folder(Path(temporary))
        main(model, folder, f"{temporary}/out")
        compare(model, f"{temporary}/out")
