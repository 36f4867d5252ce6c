"""What an exported file says of itself: all that is needed to detect with it, in the metadata of the ONNX model."""

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
    """What is detected, as in :func:`fastssd.ops.postprocess_detections`.

    Raises:
        ValueError: a number is out of range, or none.
    """

    score_threshold: Fraction
    iou_threshold: Fraction
    topk: Annotated[int, within(1, 1_000_000_000)]
    max_detections: Annotated[int, within(1, 100_000)]

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def of_preset(cls, preset: Mapping[str, Any]) -> Limits:
        """Those of a preset, with the score threshold of :func:`fastssd.detection.detect`."""
        return cls(0.3, preset["nms_threshold"], preset["topk"], preset["max_detections"])

    def changed(self, **given: float | None) -> Limits:
        """With those that are given and not None."""
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, **chosen)


@dataclass(frozen=True, eq=False)
class NetworkInfo:
    """What a network's outputs mean.

    Attributes:
        class_names: name of class 1, 2, ...
        preset: of :class:`fastssd.detection.Preset`, plain values: image_size, variances, activation, mean, std, ...;
            checked as one.
        anchors: float32 [A, 4] xyxy, fractions of the picture.
        limits: what is detected unless something else is asked for.
        nms: whether the network gives detections, not logits and deltas.
        version: of the fastssd that wrote the file.
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
            ValueError: the preset is not whole or out of range, or the anchors are not as many as it has.
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
        """Keys and values for the ONNX file; the anchors exactly, as base64 of little-endian float32."""
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
            sealed: whether the checksum of the file was found, and is right.

        Raises:
            ValueError: an entry is missing, of another type or out of range, or the format is another.
            DamagedFileError: the checksum that it must have is missing.
        """
        if KEY not in metadata:
            raise ValueError("fastssd did not export it")
        document = read_json(metadata[KEY])
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            stated = document.get("format") if isinstance(document, dict) else None
            raise ValueError(f"format {stated!r}, this version of fastssd reads {FORMAT}")
        if "checksum" in document and not sealed:
            raise DamagedFileError("its checksum is missing: it is damaged, or was changed by a program that drops it")
        if ANCHORS_KEY not in metadata:
            raise ValueError(f"{ANCHORS_KEY}: missing")
        content = base64.b64decode(metadata[ANCHORS_KEY], validate=True)
        if len(content) % 16:
            raise ValueError(f"{ANCHORS_KEY}: {len(content)} bytes are no float32 [A, 4]")
        given = {
            name: document[name] for name in ("class_names", "preset", "limits", "nms", "version") if name in document
        }
        info = from_plain(cls, given | {"anchors": np.frombuffer(content, "<f4").reshape(-1, 4).astype(np.float32)})
        info.check_preset()
        return info
