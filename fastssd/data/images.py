"""Images from files: the header, checked before a pixel is decoded, and the pixels, as 8-bit RGB."""

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
MAX_PIXELS = 100_000_000  # a larger image is refused by its header, before memory is spent on it
# Nor is memory spent on a few bytes that claim to be a large image. JPEG needs a byte for some 100 equal pixels, PNG
# one for 350 (RGB); WebP has no limit.
MAX_PIXELS_PER_BYTE, ALWAYS_PIXELS = 1000, 10_000_000

# Only these decoders run, whatever a file claims to be: Pillow knows others that call external programs.
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
_ON_ITS_SIDE = (5, 6, 7, 8)


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The image as a person sees it: upright (EXIF orientation applied), 8-bit RGB.

    Greyscale and palettes are expanded; of 16 bits the high byte is kept; what is transparent stands on white; CMYK
    is converted without its colour profile; of several frames the first is taken.

    Returns:
        uint8 [H, W, 3], writable.

    Raises:
        DataError: the file is missing, no image, of more than ``MAX_PIXELS`` or of more pixels than its bytes can
            show, truncated, or of a pixel type without a defined range (32-bit). A truncated image is never filled
            up, whatever ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` says.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise _as_data_error(path, error) from error
    return decode_image(data, path)


def decode_image(data: bytes, name: str | os.PathLike[str] = "picture") -> NDArray[np.uint8]:
    """What :func:`read_image` gives for a file with this content; errors call it `name`."""
    try:
        with _open(_Whole(data), len(data)) as image:
            upright = _UPRIGHT.get(_orientation(image))
            image.load()
            return _rgb(image if upright is None else image.transpose(upright))
    except Exception as error:
        raise _as_data_error(name, error) from error


def rgb_image(image: Image.Image, name: str = "picture") -> NDArray[np.uint8]:
    """The pixels of a Pillow image as :func:`read_image` gives them, but as they lie: it is not turned upright.

    Raises:
        DataError: its file is truncated, or its pixel type has no defined range.
    """
    try:
        _check(image)
        return _rgb(image)
    except Exception as error:
        raise _as_data_error(name, error) from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of what :func:`read_image` will return, from the header.

    A file that does not end as its format does is decoded, to find out here and not in the middle of a training.

    Raises:
        DataError: as :func:`read_image`.
    """
    try:
        with open(path, "rb") as file, _open(file, os.fstat(file.fileno()).st_size) as image:
            width, height = image.size
            if _orientation(image) in _ON_ITS_SIDE:
                width, height = height, width
            whole = _ends(file, image.format)
    except Exception as error:
        raise _as_data_error(path, error) from error
    if not whole:
        height, width, _ = read_image(path).shape
    return width, height


class _Whole(io.BytesIO):
    """A file whose end is an error to whoever reads on, where Pillow may be told to make pixels up."""

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
        raise ValueError(f"{length} bytes state an image of {image.width} x {image.height} pixels, which is not one")
    return image


def _check(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS} (fastssd.data.images.MAX_PIXELS)")
    # Pillow has called a 16-bit greyscale "I" too, which otherwise is 32-bit.
    if image.mode not in _MODES and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise ValueError(f"pixel type {image.mode!r} has no defined range; convert the image to 8-bit RGB")


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    # PNG's own getexif() decodes all pixels first.
    return int(Image.Image.getexif(image).get(_ORIENTATION, 1))


def _ends(file: IO[bytes], format: str | None) -> bool:
    """Whether the file's last bytes, or the length that it states, say that it is whole."""
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
    # Pillow's parsers raise whatever a broken file makes them run into.
    if isinstance(error, (DataError, MemoryError)):
        return error
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, UnidentifiedImageError):
        message = f"not an image in one of the formats {', '.join(_FORMATS)}"
    return DataError(Problem(os.fspath(path), None, f"cannot be read as an image: {message or type(error).__name__}"))
