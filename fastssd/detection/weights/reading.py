"""Files of tensors: their checksums are compared first, then they are read without executing code in them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from fastssd._files import check_zip

_ZIP = b"PK\x03\x04"
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin


def read_tensors(path: str | os.PathLike[str]) -> tuple[Any, bool | None]:
    """The content of a file of ``torch.save``, on the CPU: tensors and plain values only.

    Returns:
        The content, and what was compared: True for a SHA-256 of the file, False for the CRC-32 of its parts, None for
        nothing, because torch's old format has no checksums.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged or holds anything else; the message names the file.
    """
    with open(path, "rb") as file:
        start = file.read(len(_OLD))
        if not start.startswith((_ZIP, _OLD)):  # refuses torch's format of 2016 too, which unpacks a tar
            raise ValueError(f"{os.fspath(path)} is not a file of torch.save" + (": it is empty" if not start else ""))
        sealed = check_zip(file, path) if start.startswith(_ZIP) else None
        file.seek(0)
        return _content(file, path), sealed


def _content(file: IO[bytes], path: str | os.PathLike[str]) -> Any:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # any exception may come from a file with any content
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{os.fspath(path)} is damaged or holds more than tensors and plain values: {reason}"
        ) from error
    _check(content, path)
    return content


def _check(content: Any, path: str | os.PathLike[str]) -> None:
    """Raise if a tensor has more values than the file stores: with strides of 0 one number can have any shape."""
    states = [content, *content.values()] if isinstance(content, Mapping) else []
    for state in states:
        for name, value in state.items() if isinstance(state, Mapping) else ():
            if isinstance(value, Tensor) and value.layout is torch.strided:
                if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                    raise ValueError(f"{os.fspath(path)}: the tensor {name} has more values than the file stores")
            elif isinstance(value, Tensor):
                raise ValueError(f"{os.fspath(path)}: the tensor {name} is {value.layout}, not dense")


def columns_of(state: Mapping[str, Any]) -> int:
    """Number of columns of the class heads in a state dict under our names; 0 if it has none."""
    for name, box in state.items():
        if re.fullmatch(r"head\.boxes\.0(\.1)?\.bias", name) and isinstance(box, Tensor):
            classes = state.get(name.replace("boxes", "classes"))
            if isinstance(classes, Tensor) and classes.ndim and box.ndim and len(box):
                return 4 * len(classes) // len(box)
    return 0
