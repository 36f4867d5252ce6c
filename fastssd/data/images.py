"""Reads image files: checks the header before pixels are decoded, and returns pixels as 8-bit RGB."""

from __future__ import annotations

import io
import os
from typing import IO

import numpy as np
from numpy.typing import NDArray

from fastssd.data.dataset import DataError, Problem

try:
    from PIL import Image, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("images need Pillow; install it with: pip install 'fastssd[train]'") from error

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 100_000_000  # an image with more is refused from its header, before memory is used for it
# A large image in a very small file is refused too. JPEG needs a byte for about 100 equal pixels, PNG one for 350
# (RGB); WebP has no limit.
MAX_PIXELS_PER_BYTE, ALWAYS_PIXELS = 1000, 10_000_000

# Only these decoders may run: others in Pillow call external programs.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_ALPHA = ("LA", "PA", "RGBA")
_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *_ALPHA, *_16_BIT)
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)  # orientations that exchange width and height


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """An image file as 8-bit RGB, with its EXIF orientation applied.

    Greyscale and palettes are expanded. Of 16 bits the high byte is kept. Transparent pixels are blended with white.
    CMYK is converted without its colour profile. Of several frames the first is read.

    Returns:
        uint8 [H, W, 3], writable.

    Raises:
        DataError: the file is missing, is not an image, has more than ``MAX_PIXELS`` pixels or more than its bytes can
            hold, is truncated, or has a pixel type without a defined range (32-bit). Missing pixels of a truncated file
            are an error even if ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` is set.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise _as_data_error(path, error) from error
    return decode_image(data, path)


def decode_image(data: bytes, name: str | os.PathLike[str] = "image") -> NDArray[np.uint8]:
    """What :func:`read_image` returns for a file with this content; errors call it `name`."""
    try:
        with _open(_Whole(data), len(data)) as image:
            upright = _UPRIGHT.get(_orientation(image))
            image.load()
            return _rgb(image if upright is None else image.transpose(upright))
    except Exception as error:
        raise _as_data_error(name, error) from error


def rgb_image(image: Image.Image, name: str = "image") -> NDArray[np.uint8]:
    """The pixels of a Pillow image as :func:`read_image` returns them, but without applying an EXIF orientation.

    Raises:
        DataError: its file is truncated, or its pixel type has no defined range.
    """
    try:
        _check(image)
        return _rgb(image)
    except Exception as error:
        raise _as_data_error(name, error) from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of the image that :func:`read_image` returns, from the header.

    A file without the usual end of its format is decoded, so that a truncated image is found here and not during
    training.

    Raises:
        DataError: as :func:`read_image`.
    """
    try:
        with open(path, "rb") as file, _open(file, os.fstat(file.fileno()).st_size) as image:
            width, height = image.size
            if _orientation(image) in _SWAPS_SIDES:
                width, height = height, width
            whole = _ends(file, image.format)
    except Exception as error:
        raise _as_data_error(path, error) from error
    if not whole:
        height, width, _ = read_image(path).shape
    return width, height


class _Whole(io.BytesIO):
    """A file that raises an error when it is read beyond its end. Pillow can be set to invent the missing pixels."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if not data and size != 0:
            raise OSError("the file is truncated")
        return data


def _open(file: IO[bytes], length: int) -> Image.Image:
    image = Image.open(file, formats=_FORMATS)
    _check(image)
    pixels = image.width * image.height
    if pixels > max(ALWAYS_PIXELS, length * MAX_PIXELS_PER_BYTE):
        raise ValueError(f"{length} bytes are too few for the stated {image.width} x {image.height} pixels")
    return image


def _check(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS} (fastssd.data.images.MAX_PIXELS)")
    # Mode "I" is 32-bit, but older releases of Pillow use it for 16-bit greyscale files too.
    if image.mode not in _MODES and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise ValueError(f"pixel type {image.mode!r} has no defined range; convert the image to 8-bit RGB")


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow applies it itself
        return 1
    # Not image.getexif(): that of PNG decodes all pixels first.
    return int(Image.Image.getexif(image).get(_ORIENTATION, 1))


def _ends(file: IO[bytes], format: str | None) -> bool:
    """Whether the last bytes of the file, or the length in its header, show that it is complete."""
    length = file.seek(0, os.SEEK_END)
    if format in ("JPEG", "MPO"):
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"
    if format == "PNG":
        file.seek(-8, os.SEEK_END)
        return file.read(4) == b"IEND"
    if format == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= length
    return False


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        high = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)
    if image.mode in _ALPHA or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _as_data_error(path: str | os.PathLike[str], error: Exception) -> Exception:
    """The DataError for any exception that a broken file causes in Pillow."""
    if isinstance(error, (DataError, MemoryError)):
        return error
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, UnidentifiedImageError):
        message = f"not an image in one of the formats {', '.join(_FORMATS)}"
    return DataError(Problem(os.fspath(path), None, f"cannot be read as an image: {message or type(error).__name__}"))
