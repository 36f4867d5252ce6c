"""Sealing an exported file, and lists in JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO

from fastssd._files import seal_onnx, write_file


def seal(path: str | os.PathLike[str]) -> None:
    """Write the checksum of an exported ONNX file anew, after it was changed on purpose (simplified, quantised).

    Raises:
        OSError: it cannot be read or written.
        ValueError: its metadata has no place for the checksum; fastssd did not export it, or the tool left it out.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        sealed = seal_onnx(content)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    write_file(path, lambda target: target.write(sealed))


def write_list(file: IO[str], items: Iterable[str], indent: str = "") -> None:
    """A JSON list of these JSON texts, one a line, never held together."""
    file.write("[")
    between = f"\n{indent}  "
    for item in items:
        file.write(between + item)
        between = f",\n{indent}  "
    file.write("]" if between[0] == "\n" else f"\n{indent}]")
