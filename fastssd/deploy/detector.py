"""One interface to a trained detector: an image in, named boxes out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from fastssd import _checks as checks
from fastssd._image import resize_image
from fastssd.deploy.metadata import Limits
from fastssd.deploy.networks import CheckpointNetwork, Network, OnnxNetwork, Provider, is_checkpoint
from fastssd.deploy.pictures import Picture, is_picture, read_picture
from fastssd.deploy.result import NamedDetections

if TYPE_CHECKING:
    from fastssd.data import DataError


class Detector:
    """A trained detector from an ONNX file (without torch) or from a checkpoint (with torch).

    Several threads may use it at once. It can be pickled; unpickling opens the file again.

    Args:
        model: an ONNX file that fastssd exported, a checkpoint, or a run folder: its best checkpoint is used.
        score_threshold, iou_threshold, max_detections: as in :func:`fastssd.ops.postprocess_detections`; default: those
            of the file (of a checkpoint: 0.3, and those of its preset). If NMS is inside the file, its IoU threshold
            cannot be changed, and the others can only become stricter.
        batch_size: number of images that go through the network at once.
        threads: number of threads of the network; default: as for the operators, see :func:`fastssd.set_num_threads`.
            With a checkpoint this sets torch's number of threads in the whole process.
        providers: execution providers of onnxruntime, most preferred first; default: the CPU.
        device: device of torch, for a checkpoint; default: the CPU.

    Attributes:
        class_names: name of class 1, 2, ...
        image_size: height and width of the network's input, pixels; images of any size are resized to it.
        limits: the thresholds and limits in use.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime or torch is missing.
        TypeError, ValueError: the file is not a model of fastssd or is damaged (its checksum is compared), or an option
            is out of range or not for this kind of file.

    >>> detector = Detector("model.onnx")  # doctest: +SKIP
    >>> for name, score, box in detector("photo.jpg"):  # doctest: +SKIP
    ...     print(f"{name} {score:.2f} at {box}")
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        batch_size: int = 8,
        threads: int | None = None,
        providers: Sequence[Provider] | None = None,
        device: str | None = None,
    ) -> None:
        path = Path(model)
        self.path = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
        self.batch_size = checks.count("batch_size", batch_size, low=1)
        if threads is not None:
            threads = checks.count("threads", threads, low=1)
        uses_torch = is_checkpoint(self.path)
        if uses_torch and providers is not None:
            raise ValueError(f"providers: only for ONNX files, but {self.path} is a checkpoint; use device")
        if not uses_torch and device is not None:
            raise ValueError(f"device: only for checkpoints, but {self.path} is an ONNX file; use providers")
        self.network: Network = (
            CheckpointNetwork(self.path, threads, device) if uses_torch else OnnxNetwork(self.path, threads, providers)
        )
        given: dict[str, Any] = {
            "score_threshold": score_threshold,
            "iou_threshold": iou_threshold,
            "max_detections": max_detections,
        }
        info = self.network.info
        self.class_names, self.image_size = info.class_names, info.image_size
        self.limits = info.limits.changed(**given)
        if info.nms:
            _check_stricter(self.limits, info.limits)
        self._options = given | {
            "batch_size": batch_size,
            "threads": threads,
            "providers": providers,
            "device": device,
        }

    @overload
    def __call__(self, pictures: Picture) -> NamedDetections: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, pictures: Iterable[Picture]) -> list[NamedDetections]: ...

    def __call__(self, pictures: Any) -> NamedDetections | list[NamedDetections]:
        """Detect in one image, or in several.

        Args:
            pictures: an image: a path, the bytes of a file, a Pillow image or a uint8 array [H, W, 3] in RGB; or any
                iterable of images, such as an array [B, H, W, 3].

        Returns:
            The detections in the image, or a list of them for several images.

        Raises:
            DataError: an image cannot be read.
            TypeError, ValueError: a value is not an image.
        """
        if is_picture(pictures):
            return self._detect([pictures], ["pictures"])[0]
        return list(self.stream(pictures))

    @overload
    def stream(
        self, pictures: Iterable[Picture], *, on_error: Literal["raise"] = "raise"
    ) -> Iterator[NamedDetections]: ...

    @overload
    def stream(
        self, pictures: Iterable[Picture], *, on_error: Literal["return"]
    ) -> Iterator[NamedDetections | DataError]: ...

    def stream(self, pictures: Iterable[Picture], *, on_error: str = "raise") -> Iterator[Any]:
        """Detect batch by batch while iterating: for more images than fit in memory.

        Args:
            pictures: images, as in a call.
            on_error: what to do if an image cannot be read: ``"raise"``, or ``"return"``: its result is the DataError,
                and the iteration continues.

        Yields:
            For each image its detections.

        Raises:
            DataError, TypeError, ValueError: as in a call, when the batch with the image is reached.
        """
        if on_error not in ("raise", "return"):
            raise ValueError(f"on_error: expected 'raise' or 'return', got {on_error!r}")
        if isinstance(pictures, str):  # iterable, but over its letters
            raise TypeError(f"pictures: expected an iterable of images, got one path, {pictures!r}")
        try:
            iterator = iter(pictures)
        except TypeError:
            read_picture(pictures, "pictures")  # type: ignore[arg-type]  # raises an error with what is expected
            raise
        start = 0
        while batch := list(itertools.islice(iterator, self.batch_size)):
            names = [f"pictures[{start + index}]" for index in range(len(batch))]
            yield from self._detect(batch, names, on_error == "return")
            start += len(batch)

    def _detect(self, pictures: Sequence[Picture], names: Sequence[str], return_errors: bool = False) -> list[Any]:
        unreadable: tuple[type[DataError], ...] = ()
        if return_errors:
            from fastssd.data import DataError

            unreadable = (DataError,)
        results: list[Any] = []
        read = []  # index, pixels, size
        for index, (picture, name) in enumerate(zip(pictures, names, strict=True)):
            try:
                image = read_picture(picture, name)
                read.append((index, resize_image(image, self.image_size), image.shape[:2]))
                results.append(None)
            except unreadable as error:
                results.append(error)
        if read:
            found = self.network(np.stack([pixels for _, pixels, _ in read]), self.limits)
            rows = zip(read, found.boxes, found.scores, found.labels, found.counts, strict=True)
            for (index, _, size), boxes, scores, labels, count in rows:
                results[index] = self._named(pictures[index], size, boxes[:count], scores[:count], labels[:count])
        return results

    def _named(
        self,
        picture: Picture,
        size: tuple[int, ...],
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        labels: NDArray[np.int64],
    ) -> NamedDetections:
        height, width = size
        pixels = boxes * np.array([width, height, width, height], np.float32)
        names = tuple(self.class_names[label - 1] for label in labels)
        # Copies, so that a caller who keeps a few boxes does not keep the memory of the whole batch.
        return NamedDetections(pixels, scores.copy(), labels.copy(), names, (height, width), picture)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.path, self._options)

    def __repr__(self) -> str:
        return f"Detector({str(self.path)!r}: {', '.join(self.class_names)})"


def _open(path: Path, options: dict[str, Any]) -> Detector:
    return Detector(path, **options)


def _check_stricter(limits: Limits, inside: Limits) -> None:
    """Raise ValueError if `limits` ask for boxes that the NMS inside the file has already deleted."""
    if limits.iou_threshold != inside.iou_threshold:
        raise ValueError(f"iou_threshold: {inside.iou_threshold} is inside the file, got {limits.iou_threshold}")
    if limits.score_threshold < inside.score_threshold:
        raise ValueError(
            f"score_threshold: expected at least {inside.score_threshold}, which is inside the file, "
            f"got {limits.score_threshold}"
        )
    if limits.max_detections > inside.max_detections:
        raise ValueError(
            f"max_detections: expected at most {inside.max_detections}, which is inside the file, "
            f"got {limits.max_detections}"
        )
