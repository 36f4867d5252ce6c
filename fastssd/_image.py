"""An image's pixels at a network's size, the same for training, torch and ONNX; imports NumPy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def check_image(image: NDArray[np.uint8], name: str = "image") -> None:
    """Raise ValueError unless `image` is uint8 [H, W, 3] with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name}: expected uint8 of shape [H, W, 3], got {image.dtype} {list(image.shape)}")


def resize_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The whole image stretched to a square, as in SSD: uint8 [H, W, 3] to uint8 [size, size, 3].

    Bilinear; the filter grows with the reduction, so that small objects are averaged and not skipped.

    Raises:
        ValueError: not a uint8 image with three channels and at least one pixel.
    """
    check_image(image)
    if image.shape[:2] == (size, size):
        return image
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("resizing needs Pillow; install it with: pip install 'fastssd[deploy]'") from error
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(resized)
