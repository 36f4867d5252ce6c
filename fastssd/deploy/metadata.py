"""The metadata of an exported ONNX model: everything that is needed to detect with it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from fastssd._fields import check_fields, from_plain, read_json, within
from fastssd._files import ONNX_KEY, ONNX_PLACE, DamagedFileError
from fastssd._preset import ClassNames, Fraction, Preset

KEY, ANCHORS_KEY = "fastssd", "fastssd.anchors"
FORMAT = 1


@dataclass(frozen=True)
class Limits:
    """The thresholds and limits of :func:`fastssd.ops.postprocess_detections`.

    Raises:
        ValueError: a value is out of range or not a number.
    """

    score_threshold: Fraction
    iou_threshold: Fraction
    topk: Annotated[int, within(1, 1_000_000_000)]
    max_detections: Annotated[int, within(1, 100_000)]

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def of_preset(cls, preset: Mapping[str, Any]) -> Limits:
        """The limits of a preset, with the score threshold of :func:`fastssd.detection.detect`."""
        return cls(0.3, preset["nms_threshold"], preset["topk"], preset["max_detections"])

    def changed(self, **given: float | None) -> Limits:
        """These limits with the values that are given and not None."""
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, **chosen)


@dataclass(frozen=True, eq=False)
class NetworkInfo:
    """What a network's outputs mean.

    Attributes:
        class_names: name of class 1, 2, ...
        preset: the fields of :class:`fastssd.detection.Preset` as plain values: image_size, variances, activation, ...
        anchors: float32 [A, 4] xyxy, fractions of the image.
        limits: the default thresholds and limits.
        nms: whether the outputs are detections (True) or logits and deltas.
        version: version of fastssd that wrote the file.
    """

    class_names: ClassNames
    preset: dict[str, Any]
    anchors: NDArray[np.float32]
    limits: Limits
    nms: bool
    version: str

    def __post_init__(self) -> None:
        check_fields(self)

    def check_preset(self) -> None:
        """
        Raises:
            ValueError: the preset is incomplete or out of range, or the number of anchors is not that of the preset.
        """
        preset = Preset.from_dict(self.preset)
        count = sum(r * c * k for (r, c), k in zip(preset.grid_sizes, preset.anchors_per_cell, strict=True))
        if self.anchors.shape != (count, 4) or not np.isfinite(self.anchors).all():
            raise ValueError(
                f"anchors: expected [{count}, 4] finite numbers for this preset, got {list(self.anchors.shape)}"
            )

    @property
    def image_size(self) -> int:
        return int(self.preset["image_size"])

    def to_metadata(self) -> dict[str, str]:
        """Keys and values for the ONNX file. The anchors are stored exactly, as base64 of little-endian float32."""
        document = {
            "format": FORMAT,
            "version": self.version,
            "class_names": list(self.class_names),
            "preset": dict(self.preset),
            "limits": asdict(self.limits),
            "nms": self.nms,
            "checksum": "sha256",
        }
        anchors = base64.b64encode(self.anchors.astype("<f4").tobytes()).decode("ascii")
        return {KEY: json.dumps(document), ANCHORS_KEY: anchors, ONNX_KEY: ONNX_PLACE}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], sealed: bool = True) -> NetworkInfo:
        """The inverse of :meth:`to_metadata`.

        Args:
            sealed: whether the file has a checksum, and it is right.

        Raises:
            ValueError: an entry is missing, of another type or out of range, or the format is another.
            DamagedFileError: the file has no checksum, but should have one.
        """
        if KEY not in metadata:
            raise ValueError("it was not exported by fastssd")
        document = read_json(metadata[KEY])
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            stated = document.get("format") if isinstance(document, dict) else None
            raise ValueError(f"format: expected {FORMAT}, which this version of fastssd reads, got {stated!r}")
        if "checksum" in document and not sealed:
            raise DamagedFileError("its checksum is missing: it is damaged, or was changed by a program that drops it")
        if ANCHORS_KEY not in metadata:
            raise ValueError(f"{ANCHORS_KEY}: missing")
        content = base64.b64decode(metadata[ANCHORS_KEY], validate=True)
        if len(content) % 16:
            raise ValueError(f"{ANCHORS_KEY}: {len(content)} bytes are not an array of float32 [A, 4]")
        given = {
            name: document[name] for name in ("class_names", "preset", "limits", "nms", "version") if name in document
        }
        info = from_plain(cls, given | {"anchors": np.frombuffer(content, "<f4").reshape(-1, 4).astype(np.float32)})
        info.check_preset()
        return info
