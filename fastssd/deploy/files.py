"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file to write, which takes its place when all is in it; after an error the one before stays."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_list(file: IO[str], items: Iterable[str], indent: str = "") -> None:
    """A JSON list of these JSON texts, one a line, never held together."""
    file.write("[")
    between = f"\n{indent}  "
    for item in items:
        file.write(between + item)
        between = f",\n{indent}  "
    file.write("]" if between[0] == "\n" else f"\n{indent}]")
