"""Files of tensors: verified first, then read without executing anything."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from fastssd._files import check_zip

_ZIP = b"PK\x03\x04"
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch before 1.6 began its files with


def read_tensors(path: str | os.PathLike[str]) -> tuple[Any, bool | None]:
    """What a file of ``torch.save`` holds, on the CPU, if that is tensors and plain values.

    Returns:
        The content; and whether a SHA-256 of the file was compared (True), the CRC-32 of its parts (False), or nothing,
        because torch's old format has neither (None).

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, or holds anything else; names the file.
    """
    with open(path, "rb") as file:
        start = file.read(len(_OLD))
        if not start.startswith((_ZIP, _OLD)):  # among the others is torch's format of 2016, which unpacks a tar
            raise ValueError(f"{os.fspath(path)} is not a file of torch.save" + (": it is empty" if not start else ""))
        sealed = check_zip(file, path) if start.startswith(_ZIP) else None
        file.seek(0)
        return _content(file, path), sealed


def _content(file: IO[bytes], path: str | os.PathLike[str]) -> Any:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for a file that may hold anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{os.fspath(path)} is damaged or holds more than tensors: {reason}") from error
    _check(content, path)
    return content


def _check(content: Any, path: str | os.PathLike[str]) -> None:
    """Raise where tensors claim more than the file has: one number can be a tensor of any shape by strides of 0."""
    states = [content, *content.values()] if isinstance(content, Mapping) else []
    for state in states:
        for name, value in state.items() if isinstance(state, Mapping) else ():
            if isinstance(value, Tensor) and value.layout is torch.strided:
                if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                    raise ValueError(f"{os.fspath(path)}: the tensor {name} states more values than the file holds")
            elif isinstance(value, Tensor):
                raise ValueError(f"{os.fspath(path)}: the tensor {name} is {value.layout}, not dense")


def columns_of(state: Mapping[str, Any]) -> int:
    """How many columns the class heads of a state dict under our names have; 0 where it has none."""
    for name, box in state.items():
        if re.fullmatch(r"head\.boxes\.0(\.1)?\.bias", name) and isinstance(box, Tensor):
            classes = state.get(name.replace("boxes", "classes"))
            if isinstance(classes, Tensor) and classes.ndim and box.ndim and len(box):
                return 4 * len(classes) // len(box)
    return 0
