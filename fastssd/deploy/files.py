"""Sealing an exported file, and lists in JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO

from fastssd._files import seal_onnx, write_file


def seal(path: str | os.PathLike[str]) -> None:
    """Update the checksum of an exported ONNX file that was changed on purpose (simplified, quantised).

    Raises:
        OSError: it cannot be read or written.
        ValueError: its metadata has no checksum: fastssd did not export it, or a tool removed it.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        sealed = seal_onnx(content)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    write_file(path, lambda target: target.write(sealed))


def write_list(file: IO[str], items: Iterable[str], indent: str = "") -> None:
    """Write a JSON list of these JSON texts, one per line, without holding all of them in memory."""
    file.write("[")
    separator = f"\n{indent}  "
    for item in items:
        file.write(separator + item)
        separator = f",\n{indent}  "
    file.write("]" if separator[0] == "\n" else f"\n{indent}]")
