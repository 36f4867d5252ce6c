"""The interface of a data set: samples, and the problems that were found in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Sample(NamedTuple):
    """One image with its G ground-truth boxes; the arrays belong to the caller."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    boxes: NDArray[np.float32]  # [G, 4] xyxy, pixels, inside the image, of positive area
    labels: NDArray[np.int64]  # [G] label k is class_names[k - 1]; 0 is background and never appears
    image_id: str
    difficult: NDArray[np.bool_]  # [G] VOC's `difficult`, COCO's `iscrowd`: not used in training, not counted in AP


class Problem(NamedTuple):
    """One thing that is wrong in a data set."""

    file: str
    line: int | None  # 1-based; None if the problem is not in one line
    message: str

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line) if part) + f": {self.message}"


class DataError(ValueError):
    """A data set that cannot be used as it is.

    Attributes:
        problems: all problems, in the order of the files.
        problem: the first of them.
    """

    problems: tuple[Problem, ...]
    _SHOWN = 20

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*problems)
        # A DataLoader makes the exception of a worker again from its text, so a string must do.
        self.problems = tuple(Problem("data set", None, p) if isinstance(p, str) else p for p in problems)

    @property
    def problem(self) -> Problem:
        return self.problems[0]

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[: self._SHOWN]]
        if len(self.problems) > self._SHOWN:
            lines.append(f"... and {len(self.problems) - self._SHOWN} more")
        return "\n".join(lines)


def wrong(file: str, line: int | None, message: str) -> DataError:
    """The DataError with one problem, to raise."""
    return DataError(Problem(file, line, message))


class Problems(list[Problem]):
    """The problems found so far."""

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Add the problems of a DataError inside to the list, and continue after the block."""
        try:
            yield
        except DataError as error:
            self += error.problems


class DetectionDataset(Protocol):
    """A sequence of samples. It can be pickled, so that worker processes can use it."""

    class_names: tuple[str, ...]
    problems: tuple[Problem, ...]  # problems of what was left out with on_error="skip"

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`, the same one at every call.

        Raises:
            IndexError: outside ``[-len, len)``.
            DataError: the image's pixels cannot be decoded.
        """
        ...


def at(index: int, length: int) -> int:
    """`index` from the start; like in a list, negative ones count from the end. IndexError outside."""
    if not -length <= index < length:
        raise IndexError(f"index {index} is outside a data set of {length} images")
    return index % length
