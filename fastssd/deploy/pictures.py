"""A picture as an application has it, as pixels."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastssd._image import check_image

if TYPE_CHECKING:
    from PIL import Image

    Picture: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]
else:
    Picture = Any

_FILES = (str, os.PathLike)
_CONTENTS = (bytes, bytearray, memoryview)


def is_picture(value: object) -> bool:
    """Whether `value` is one picture, not a batch of them."""
    if isinstance(value, np.ndarray):
        return value.ndim != 4
    return isinstance(value, (*_FILES, *_CONTENTS)) or _is_pillow(value)


def read_picture(picture: Picture, name: str = "picture") -> NDArray[np.uint8]:
    """uint8 [H, W, 3], RGB.

    Args:
        picture: a path or a file's content (turned upright as its EXIF says), a Pillow image or a uint8 array
            [H, W, 3] in RGB (both as their pixels lie).
        name: what errors call it; a path says its own.

    Raises:
        DataError: it cannot be read as a picture.
        TypeError, ValueError: it is nothing like one, or an array of another shape or dtype.
    """
    if isinstance(picture, np.ndarray):
        check_image(picture, name)
        return picture
    if not is_picture(picture):
        raise TypeError(
            f"{name}: expected a path, the bytes of a file, a Pillow image or a uint8 array [H, W, 3], "
            f"got {type(picture).__name__}"
        )
    try:
        from fastssd.data.images import decode_image, read_image, rgb_image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need Pillow; install it with: pip install 'fastssd[deploy]'") from error

    if isinstance(picture, _FILES):
        return read_image(picture)
    if isinstance(picture, _CONTENTS):
        return decode_image(bytes(picture), name)
    return rgb_image(picture, name)


def _is_pillow(value: object) -> bool:
    pillow = sys.modules.get("PIL.Image")  # whoever has such an image has imported it
    return pillow is not None and isinstance(value, pillow.Image)
