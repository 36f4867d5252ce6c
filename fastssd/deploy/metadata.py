"""What an exported file says of itself: all that is needed to detect with it, in the metadata of the ONNX model."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.ops import _face as face

KEY, ANCHORS_KEY = "fastssd", "fastssd.anchors"
FORMAT = 1


@dataclass(frozen=True)
class Limits:
    """What is detected, as in :func:`fastssd.ops.postprocess_detections`.

    Raises:
        TypeError, ValueError: a number is out of range.
    """

    score_threshold: float
    iou_threshold: float
    topk: int
    max_detections: int

    def __post_init__(self) -> None:
        face.fraction("score_threshold", self.score_threshold)
        face.fraction("iou_threshold", self.iou_threshold)
        face.count("topk", self.topk, low=1)
        face.count("max_detections", self.max_detections, low=1)

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
        preset: of :class:`fastssd.detection.Preset`, plain values: image_size, variances, activation, mean, std, ...
        anchors: float32 [A, 4] xyxy, fractions of the picture.
        limits: what is detected unless something else is asked for.
        nms: whether the network gives detections, not logits and deltas.
        version: of the fastssd that wrote the file.
    """

    class_names: tuple[str, ...]
    preset: Mapping[str, Any]
    anchors: NDArray[np.float32]
    limits: Limits
    nms: bool
    version: str

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
        }
        anchors = base64.b64encode(self.anchors.astype("<f4").tobytes()).decode("ascii")
        return {KEY: json.dumps(document), ANCHORS_KEY: anchors}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> NetworkInfo:
        """The inverse of :meth:`to_metadata`.

        Raises:
            ValueError: an entry is missing, or of another format.
        """
        if KEY not in metadata:
            raise ValueError("fastssd did not export it")
        try:
            document = json.loads(metadata[KEY])
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}, this version of fastssd reads {FORMAT}")
            anchors = np.frombuffer(base64.b64decode(metadata[ANCHORS_KEY], validate=True), "<f4").reshape(-1, 4)
            return cls(
                tuple(document["class_names"]),
                document["preset"],
                anchors.astype(np.float32),
                Limits(**document["limits"]),
                document["nms"],
                document["version"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"its metadata is not whole: {error}") from error
