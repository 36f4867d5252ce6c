"""The folder of results of ``fastssd predict``, which grows a batch at a time and can be gone on with.

``predictions.jsonl`` has a line for every picture, in the order of the pictures; ``predictions.meta.json`` says what
they were made with. The documents are made of the lines, never of what is in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

from fastssd._fields import read_json
from fastssd._files import whole_file, writing
from fastssd.deploy.files import write_list

FORMAT = 1
FEW = 100  # results of so many pictures are soon made again

Entry = Mapping[str, Any]
"""A line: ``image`` with width, height, drawn and detections, or with the ``error`` that it could not be read for."""


class Predictions:
    """Opens a folder of results to write into it; one process at a time.

    Args:
        folder: is made where it is missing.
        options: what results depend on, as plain JSON values; ``batch_size`` among them.
        about: what else the meta file says.
        resume: go on after the last batch that is there whole; where nothing is there, begin.
        overwrite: begin anew, whatever is there. Without either, results of more than ``FEW`` pictures stay.

    Attributes:
        done: the pictures that have their line already, in the order of the lines.

    Raises:
        FileExistsError: there are results, and neither `resume` nor `overwrite`.
        ValueError: the results to go on with were made with other options, or are no such results.
        BlockingIOError: another process writes here.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self.path, self.meta = folder / "predictions.jsonl", folder / "predictions.meta.json"
        self.done: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115  # closed by close()
        try:
            _lock(self._file, folder)
            self._file.seek(0)
            if resume and self.path.stat().st_size:
                self._compare(options)
                self._take_up(options["batch_size"])
                return
            lines = sum(1 for _ in islice(self._file, FEW + 1))
            if lines > FEW and not overwrite:
                raise FileExistsError(
                    f"{folder} holds the predictions of more than {FEW} pictures; go on with them (--resume), "
                    "replace them (--overwrite), or choose another folder (--out)"
                )
            self._file.truncate(0)
            with whole_file(self.meta) as file:
                file.write(json.dumps({"format": FORMAT, **about, "options": dict(options)}, indent=2) + "\n")
        except BaseException:
            self.close()
            raise

    def write(self, entries: Iterable[Entry]) -> None:
        """Append the lines of a batch, at once.

        Raises:
            OSError: they cannot be written; names the file and why. What was there, `resume` goes on with.
        """
        lines = b"".join(json.dumps(entry, allow_nan=False).encode() + b"\n" for entry in entries)
        with writing(self.path):
            self._file.write(lines)
            self._file.flush()

    def entries(self) -> Iterator[dict[str, Any]]:
        """All lines, also those of before."""
        with open(self.path, "rb") as file:
            yield from map(json.loads, file)

    def write_document(self, path: Path, about: Mapping[str, Any]) -> tuple[int, int]:
        """Write one JSON document of all: what is `about`, then ``images``, then ``failed``.

        Returns:
            How many pictures there are, and how many of them could not be read.
        """
        counts = [0, 0]

        def lines(failed: bool) -> Iterator[str]:
            for entry in self.entries():
                if ("error" in entry) == failed:
                    counts[failed] += 1
                    yield json.dumps(entry)

        with whole_file(path) as file:
            file.write("{\n" + "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items()))
            file.write('  "images": ')
            write_list(file, lines(failed=False), "  ")
            file.write(',\n  "failed": ')
            write_list(file, lines(failed=True), "  ")
            file.write("\n}\n")
        return sum(counts), counts[True]

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk did not take: write() has said so
            self._file.close()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compare(self, options: Mapping[str, Any]) -> None:
        try:
            meta = read_json(self.meta.read_bytes())
            before: dict[str, Any] | None = dict(meta["options"]) if meta["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.meta}: does not say what {self.path} was made with ({error})") from None
        if before is None:
            raise ValueError(f"{self.meta}: format {meta['format']}, this version of fastssd reads {FORMAT}")
        different = [
            f"{name} {before.get(name)!r} there, {options.get(name)!r} now"
            for name in {**before, **options}
            if before.get(name) != options.get(name)
        ]
        if different:
            raise ValueError(f"{self.folder} was made with other options and cannot be resumed: {'; '.join(different)}")

    def _take_up(self, batch_size: int) -> None:
        """Note what is done and cut off what comes after the last whole batch: a batch is done again or not at all, so
        that the pictures that go through the network together are those of a run never stopped."""
        end, whole = 0, 0
        batch: list[str] = []
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):  # it was being written
                break
            try:
                batch.append(os.fspath(read_json(line)["image"]))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self.path}:{number}: is no prediction; nothing can be added to it") from None
            end += len(line)
            if len(batch) == batch_size:
                self.done += batch
                batch, whole = [], end
        self._file.truncate(whole)


def _lock(file: IO[bytes], folder: Path) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"another process is writing into {folder}") from None
    except OSError:  # a file system without locks
        return
