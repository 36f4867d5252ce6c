"""Reads the kinds of images that a :class:`Detector` accepts."""

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
    """Whether `value` is one image and not several."""
    if isinstance(value, np.ndarray):
        return value.ndim != 4
    return isinstance(value, (*_FILES, *_CONTENTS)) or _is_pillow(value)


def read_picture(picture: Picture, name: str = "picture") -> NDArray[np.uint8]:
    """An image as uint8 [H, W, 3], RGB.

    Args:
        picture: a path or the bytes of a file (both are rotated as EXIF says), a Pillow image or a uint8 array
            [H, W, 3] in RGB (both are not rotated).
        name: how errors call it; errors about a path name the path.

    Raises:
        DataError: it cannot be read as an image.
        TypeError, ValueError: it is not an image, or an array of another shape or dtype.
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
        raise ModuleNotFoundError("images need Pillow; install it with: pip install 'fastssd[deploy]'") from error

    if isinstance(picture, _FILES):
        return read_image(picture)
    if isinstance(picture, _CONTENTS):
        return decode_image(bytes(picture), name)
    return rgb_image(picture, name)


def _is_pillow(value: object) -> bool:
    pillow = sys.modules.get("PIL.Image")  # a caller with a Pillow image has imported it
    return pillow is not None and isinstance(value, pillow.Image)
