"""The folder of results of ``fastssd predict``. It grows batch by batch, so a run can be stopped and resumed.

``predictions.jsonl`` has a line for every image, in the order of the images. ``predictions.meta.json`` has the options
of the run. The documents are made from the lines, so results need not be kept in memory.
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
FEW = 100  # results of up to this many images are replaced without asking

Entry = Mapping[str, Any]
"""A line: ``image`` with width, height, drawn and detections; or with ``error`` if the image could not be read."""


class Predictions:
    """Opens a folder of results for writing, by one process at a time.

    Args:
        folder: made if it does not exist.
        options: everything that results depend on, as plain JSON values, with ``batch_size``.
        about: other entries of the meta file.
        resume: continue after the last complete batch; without results, start.
        overwrite: start again and replace all results. If both are False, only results of up to ``FEW`` images are
            replaced.

    Attributes:
        done: the images that have a line already, in the order of the lines.

    Raises:
        FileExistsError: there are results of more than ``FEW`` images, and neither `resume` nor `overwrite`.
        ValueError: the results to continue were made with other options, or the files are of another program.
        BlockingIOError: another process is writing into the folder.
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
                self._keep_whole_batches(options["batch_size"])
                return
            lines = sum(1 for _ in islice(self._file, FEW + 1))
            if lines > FEW and not overwrite:
                raise FileExistsError(
                    f"{folder} has predictions of more than {FEW} images; continue them (--resume), replace them "
                    "(--overwrite), or choose another folder (--out)"
                )
            self._file.truncate(0)
            with whole_file(self.meta) as file:
                file.write(json.dumps({"format": FORMAT, **about, "options": dict(options)}, indent=2) + "\n")
        except BaseException:
            self.close()
            raise

    def write(self, entries: Iterable[Entry]) -> None:
        """Append the lines of a batch.

        Raises:
            OSError: they cannot be written; the message names the file and the reason. `resume` continues after the
                batches that were written before.
        """
        lines = b"".join(json.dumps(entry, allow_nan=False).encode() + b"\n" for entry in entries)
        with writing(self.path):
            self._file.write(lines)
            self._file.flush()

    def entries(self) -> Iterator[dict[str, Any]]:
        """All lines, those of earlier runs included."""
        with open(self.path, "rb") as file:
            yield from map(json.loads, file)

    def write_document(self, path: Path, about: Mapping[str, Any]) -> tuple[int, int]:
        """Write all lines as one JSON document: the entries of `about`, then ``images``, then ``failed``.

        Returns:
            The number of images, and the number of those that could not be read.
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
        with contextlib.suppress(OSError):  # the disk is full: write() has raised it already
            self._file.close()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compare(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError if the results in the folder were made with other options."""
        try:
            meta = read_json(self.meta.read_bytes())
            before: dict[str, Any] | None = dict(meta["options"]) if meta["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.meta}: does not have the options of {self.path} ({error})") from None
        if before is None:
            raise ValueError(
                f"{self.meta}: format: expected {FORMAT}, which this version of fastssd reads, got {meta['format']}"
            )
        different = [
            f"{name} was {before.get(name)!r}, is {options.get(name)!r}"
            for name in {**before, **options}
            if before.get(name) != options.get(name)
        ]
        if different:
            raise ValueError(f"{self.folder} was made with other options and cannot be resumed: {'; '.join(different)}")

    def _keep_whole_batches(self, batch_size: int) -> None:
        """Read which images are done, and cut off the lines after the last complete batch.

        An incomplete batch is done again, so that the same images go through the network together as in a run that was
        never stopped.
        """
        end, whole = 0, 0
        batch: list[str] = []
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):  # incomplete: the run ended while writing it
                break
            try:
                batch.append(os.fspath(read_json(line)["image"]))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self.path}:{number}: not a line of fastssd predict; cannot resume") from None
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
