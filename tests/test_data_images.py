"""Reading image files: pixel types, orientation, truncated files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image, ImageFile

from fastssd.data import DataError, images, load_dataset, read_image
from tests.datasets import HEIGHT, WIDTH, truncate, write_image, write_voc

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def two_colours(left: Any, right: Any, mode: str) -> Image.Image:
    image = Image.new(mode, (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.array([[0x1234] * 4 + [0xFF00] * 4] * 4, np.uint16))


def palette_with_transparency(path: Path) -> None:
    image = two_colours(0, 1, "P")
    image.putpalette([*RED, *GREEN])
    image.save(path, transparency=1)


@pytest.mark.parametrize(
    ("name", "save", "left", "right"),
    [
        ("grey.png", lambda path: two_colours(7, 200, "L").save(path), (7, 7, 7), (200, 200, 200)),
        ("bits.png", lambda path: two_colours(0, 1, "1").save(path), (0, 0, 0), (255, 255, 255)),
        ("alpha.png", lambda path: two_colours((*RED, 255), (*BLUE, 0), "RGBA").save(path), RED, (255, 255, 255)),
        ("grey_alpha.png", lambda path: two_colours((9, 255), (9, 0), "LA").save(path), (9, 9, 9), (255, 255, 255)),
        ("palette.png", palette_with_transparency, RED, (255, 255, 255)),
        ("cmyk.jpg", lambda path: two_colours((0, 255, 255, 0), (0, 0, 0, 0), "CMYK").save(path), RED, (255, 255, 255)),
        ("sixteen.png", lambda path: sixteen_bits().save(path), (0x12,) * 3, (0xFF,) * 3),
        ("sixteen.tif", lambda path: sixteen_bits().save(path), (0x12,) * 3, (0xFF,) * 3),
        ("plain.bmp", lambda path: two_colours(RED, BLUE, "RGB").save(path), RED, BLUE),
        ("lossless.webp", lambda path: two_colours(RED, BLUE, "RGB").save(path, lossless=True), RED, BLUE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_pixel_type_becomes_rgb(tmp_path: Path, name: str, save: Any, left: Any, right: Any) -> None:
    save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.shape == (4, 8, 3)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image[0, 0].astype(int), left, atol=3)
    np.testing.assert_allclose(image[-1, -1].astype(int), right, atol=3)
    assert images.image_size(tmp_path / name) == (8, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3).repeat(16, 0).repeat(16, 1) * 40
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}  # quarter turns to the left, after mirroring
    upright = np.rot90(stored[:, ::-1] if orientation in (2, 4, 5, 7) else stored, turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"x.{suffix}", exif=exif)
    image = read_image(tmp_path / f"x.{suffix}")
    np.testing.assert_allclose(image[:, :, 0].astype(int), upright, atol=4)
    assert images.image_size(tmp_path / f"x.{suffix}") == upright.shape[::-1]


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (8, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert images.image_size(tmp_path / "x.jpg") == read_image(tmp_path / "x.jpg").shape[1::-1] == (8, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "ppm"])
@pytest.mark.parametrize("pillow_fills_up", [False, True])
def test_a_truncated_image_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, pillow_fills_up: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", pillow_fills_up)
    path = tmp_path / f"x.{suffix}"
    write_image(path)
    whole = path.read_bytes()
    read_image(path)
    for length in (len(whole) // 2, len(whole) - 14):
        path.write_bytes(whole[:length])
        for read in (read_image, images.image_size):
            with pytest.raises(DataError) as caught:
                read(path)
            assert caught.value.problem.file == str(path)


def test_bytes_after_the_end_of_an_image_are_legal(tmp_path: Path) -> None:
    write_image(tmp_path / "x.jpg")
    with open(tmp_path / "x.jpg", "ab") as file:
        file.write(b"a camera's notes")
    assert images.image_size(tmp_path / "x.jpg") == (WIDTH, HEIGHT)


@pytest.mark.parametrize("size", [None, (WIDTH + 1, HEIGHT)])
def test_an_image_that_changes_after_loading_is_named(tmp_path: Path, size: tuple[int, int] | None) -> None:
    write_voc(tmp_path)
    dataset = load_dataset(tmp_path, "train")
    path = tmp_path / "JPEGImages/a.jpg"
    write_image(path, size) if size else truncate(path)
    with pytest.raises(DataError) as caught:
        dataset[0]
    assert caught.value.problem.file == str(path)
    assert str(path) in str(DataError(str(caught.value)))  # as a DataLoader raises it again
