"""The networks that a :class:`Detector` runs: an ONNX file in onnxruntime, a checkpoint in torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastssd._files import DamagedFileError, check_onnx, warn_unverified
from fastssd.backends import threads as pool
from fastssd.deploy.metadata import Limits, NetworkInfo
from fastssd.ops import Detections, postprocess_detections

Provider = str | tuple[str, dict[str, Any]]
CPU = ("CPUExecutionProvider",)

_ZIP = b"PK\x03\x04"  # first bytes of a checkpoint
_IR_VERSION = b"\x08"  # first byte of an ONNX file: the key of its first field


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a checkpoint (True) or an ONNX file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither.
    """
    with open(path, "rb") as file:
        start = file.read(len(_ZIP))
    if start != _ZIP and not start.startswith(_IR_VERSION):
        raise ValueError(f"{os.fspath(path)} is neither a checkpoint nor an ONNX file")
    return start == _ZIP


class Network(Protocol):
    info: NetworkInfo

    def __call__(self, pixels: NDArray[np.uint8], limits: Limits) -> Detections:
        """Detections with boxes as fractions of the image, in images uint8 [B, S, S, 3] in RGB."""
        ...


class OnnxNetwork:
    """An ONNX file of :func:`fastssd.deploy.onnx_export.export_onnx`.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime is missing.
        ValueError: the file is damaged, not ONNX or not of fastssd, or a provider is not available.
    """

    def __init__(
        self, path: str | os.PathLike[str], threads: int | None = None, providers: Sequence[Provider] | None = None
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "an ONNX file needs onnxruntime; install it with: pip install 'fastssd[deploy]'"
            ) from error
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers or CPU]
        _check_providers(names, onnxruntime.get_available_providers(), "available here")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or pool.current()
        with open(path, "rb") as file:
            content = file.read()
        sealed = check_onnx(content, path)
        try:  # from the bytes that were verified: the file may have changed meanwhile
            self.session = onnxruntime.InferenceSession(content, options, providers=list(providers or CPU))
        except Exception as error:  # onnxruntime has a class for each of its status codes
            raise ValueError(f"{os.fspath(path)} is damaged or not an ONNX file: {error}") from error
        del content
        _check_providers(names, self.session.get_providers(), "in use; the others failed to start")
        try:
            self.info = NetworkInfo.from_metadata(self.session.get_modelmeta().custom_metadata_map, sealed)
            self._check_shapes()
        except DamagedFileError as error:
            raise DamagedFileError(f"{os.fspath(path)}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is not a detector of fastssd: {error}") from error
        if not sealed:
            warn_unverified(path, "it was exported before files had a checksum; export it again to get one")

    def _check_shapes(self) -> None:
        """Raise ValueError if inputs or outputs have other shapes than the metadata says, except for the batch."""
        info, num_anchors = self.info, len(self.info.anchors)
        expected: dict[str, list[int]] = {"images": [3, info.image_size, info.image_size]}
        if info.nms:
            most = min(info.limits.max_detections, num_anchors * len(info.class_names))
            expected |= {"boxes": [most, 4], "scores": [most], "labels": [most], "counts": []}
        else:
            expected |= {"logits": [num_anchors, len(info.class_names) + 1], "deltas": [num_anchors, 4]}
        found = {value.name: value.shape[1:] for value in (*self.session.get_inputs(), *self.session.get_outputs())}
        if found != expected:
            raise ValueError(f"its metadata describes {expected}, the network has {found}")

    def __call__(self, pixels: NDArray[np.uint8], limits: Limits) -> Detections:
        outputs = self.session.run(None, {"images": to_input(pixels)})
        if not self.info.nms:
            logits, deltas = outputs
            return postprocess(logits, deltas, self.info, limits)
        boxes, scores, labels, counts = outputs
        if not ((labels >= -1) & (labels <= len(self.info.class_names))).all():
            raise ValueError(f"the network has returned labels outside of its {len(self.info.class_names)} classes")
        # NMS of a box never depends on boxes with a lower score, so stricter limits keep the first boxes.
        counts = np.minimum((scores.astype(np.float64) > limits.score_threshold).sum(1), limits.max_detections)
        return Detections(boxes, scores, labels, None, counts)


def _check_providers(wanted: Sequence[str], present: Sequence[str], what: str) -> None:
    """Raise ValueError if a provider is missing: onnxruntime would use another one, with no more than a log message."""
    for name in wanted:
        if name not in present:
            raise ValueError(f"providers: expected some of those {what} ({', '.join(present)}), got {name!r}")


class CheckpointNetwork:
    """A checkpoint of a training.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: torch is missing.
        CheckpointError: the file is damaged or of another program.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None, device: str | None = None) -> None:
        from fastssd._config import version
        from fastssd.training import load_checkpoint

        self.device = device or "cpu"
        self.model, checkpoint = load_checkpoint(path, self.device)
        anchors = self.model.anchors.cpu().numpy()
        preset = checkpoint.preset.to_dict()
        self.info = NetworkInfo(checkpoint.class_names, preset, anchors, Limits.of_preset(preset), False, version())
        if threads is not None:
            import torch

            torch.set_num_threads(threads)

    def __call__(self, pixels: NDArray[np.uint8], limits: Limits) -> Detections:
        import torch

        from fastssd.detection.preprocess import to_input

        with torch.no_grad():
            logits, deltas = self.model(to_input(torch.from_numpy(pixels).to(self.device)))
        return postprocess(logits.float().cpu().numpy(), deltas.float().cpu().numpy(), self.info, limits)


def to_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [B, S, S, 3] to float32 [B, 3, S, S] in [0, 1]; bit for bit as
    :func:`fastssd.detection.preprocess.to_input` does it with torch."""
    return np.divide(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), np.float32(255), dtype=np.float32)


def postprocess(
    logits: NDArray[np.float32], deltas: NDArray[np.float32], info: NetworkInfo, limits: Limits
) -> Detections:
    return postprocess_detections(
        logits,
        deltas,
        info.anchors,
        score_threshold=limits.score_threshold,
        iou_threshold=limits.iou_threshold,
        topk=limits.topk,
        max_detections=limits.max_detections,
        clip=(1.0, 1.0),
        activation=info.preset["activation"],
        variances=info.preset["variances"],
    )
