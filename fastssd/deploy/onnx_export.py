"""A trained model as an ONNX file that runs without torch and without this package (extra ``export``)."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastssd._config import version
from fastssd._files import seal_onnx, write_file
from fastssd.deploy.metadata import Limits, NetworkInfo

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  torch's exporter needs it
    import torch

    from fastssd.deploy.onnx_nms import OPSET, append_graph, postprocess_graph
    from fastssd.detection import SSD
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"exporting needs {error.name}; install it with: pip install 'fastssd[export]'", name=error.name
    ) from error

IR_VERSION = 8  # that of opset 18; onnxruntime can read it since 2023
TOLERANCE = 1e-4  # of the exported outputs, relative and absolute


@dataclass(frozen=True)
class Exported:
    """What :func:`export_onnx` wrote.

    Attributes:
        path: of the file.
        size: of the file, bytes.
        inputs, outputs: name and shape of each; the first dimension is ``"batch"``.
        difference: largest difference between logits and deltas of torch and of onnxruntime, on random images.
    """

    path: str
    size: int
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    difference: float


def export_onnx(
    model: SSD,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    nms: bool = False,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    topk: int | None = None,
    max_detections: int | None = None,
) -> Exported:
    """Write `model` as an ONNX file, after comparing its outputs with those of torch.

    The input is ``images``, float32 [batch, 3, S, S], RGB in [0, 1]; the normalisation is inside. The outputs are
    ``logits`` [batch, A, C] and ``deltas`` [batch, A, 4], or with `nms` those of
    :func:`fastssd.ops.postprocess_detections`, computed by standard operators: ``boxes`` [batch, K, 4] as fractions of
    the image, ``scores``, ``labels`` and ``counts``. The metadata holds what else is needed (docs/deploy.md).

    Args:
        model: on any device, in any mode; it is not changed.
        path: the file to write, completely or not at all.
        class_names: name of class 1, 2, ...; default: those of the model.
        nms: whether the outputs are detections (True) or logits and deltas.
        score_threshold, iou_threshold, topk, max_detections: as in :func:`fastssd.ops.postprocess_detections`; default:
            0.3 and those of the model's preset. With `nms` they are part of the graph; else they are the defaults of
            :class:`~fastssd.deploy.Detector` for this file.

    Raises:
        ValueError: names that do not fit the model, or a limit out of range.
        OSError: the file cannot be written; the message names it and the reason.
        RuntimeError: the outputs of onnxruntime differ from those of torch.
    """
    names = tuple(model.class_names if class_names is None else class_names)
    if len(names) != model.num_classes:
        raise ValueError(f"class_names: expected {model.num_classes} names, got {len(names)}")
    preset = model.preset.to_dict()
    limits = Limits.of_preset(preset).changed(
        score_threshold=score_threshold, iou_threshold=iou_threshold, topk=topk, max_detections=max_detections
    )
    # On the CPU, which every machine has. Where the exported file runs does not depend on it.
    network = copy.deepcopy(model).cpu().float().eval()
    info = NetworkInfo(names, preset, network.anchors.numpy(), limits, nms=False, version=version())
    exported = _heads(network)
    _describe(exported, info)
    difference = _compare(network, exported)
    if nms:
        append_graph(exported, postprocess_graph(info))
        _describe(exported, replace(info, nms=True))
        onnx.checker.check_model(exported, full_check=True)
        _run(exported, np.zeros((1, 3, info.image_size, info.image_size), np.float32))
    content = seal_onnx(exported.SerializeToString())
    write_file(path, lambda file: file.write(content))
    return Exported(
        os.fspath(path), len(content), _shapes(exported.graph.input), _shapes(exported.graph.output), difference
    )


def _heads(network: SSD) -> onnx.ModelProto:
    size = network.preset.image_size
    with _quiet():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            input_names=["images"],
            output_names=["logits", "deltas"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns None
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress, its advice, and its warning that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _describe(exported: onnx.ModelProto, info: NetworkInfo) -> None:
    """Set the metadata, and delete what the exporter wrote about this machine (stack traces, paths)."""
    exported.ir_version = IR_VERSION
    exported.producer_name, exported.producer_version = "fastssd", info.version
    exported.doc_string = f"SSD detector for {', '.join(info.class_names)}"
    graph = exported.graph
    graph.name, graph.doc_string = str(info.preset["name"]), ""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.helper.set_model_props(exported, info.to_metadata())


def _compare(network: SSD, exported: onnx.ModelProto) -> float:
    onnx.checker.check_model(exported, full_check=True)
    size = network.preset.image_size
    images = np.random.default_rng(0).random((3, 3, size, size), np.float32)
    with torch.no_grad():
        expected = [output.numpy() for output in network(torch.from_numpy(images))]
    found = _run(exported, images)
    for name, ours, theirs in zip(("logits", "deltas"), found, expected, strict=True):
        if not np.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE):
            raise RuntimeError(
                f"the exported {name} differ from torch's by {np.abs(ours - theirs).max():.3g}; no file was written"
            )
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(found, expected, strict=True))


def _run(exported: onnx.ModelProto, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"images": images}))


def _shapes(values: Sequence[onnx.ValueInfoProto]) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
