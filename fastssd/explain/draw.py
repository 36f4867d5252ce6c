"""Draw boxes with their class and score on an image (Pillow; extra ``viz``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastssd.explain.style import class_color, contrast, text_color

if TYPE_CHECKING:
    from PIL import Image, ImageFont

SMALLEST_FONT = 9  # pixels; below this Pillow's font cannot be read
LONGEST_NAME = 28  # letters of a class name that a tag shows
_MORE_FONTS = (  # for class names beyond ASCII, which is all that Pillow's own font knows
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "Hiragino Sans GB.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "arial.ttf",
)
_TAG_PLACES = (  # (x, y) of a tag against its box, best first: at the left or right edge; above, inside, below
    ("left", "above"),
    ("left", "inside top"),
    ("right", "above"),
    ("left", "below"),
    ("right", "inside top"),
    ("left", "inside bottom"),
    ("right", "below"),
    ("right", "inside bottom"),
)


class _Rect(NamedTuple):
    """Whole pixels, the upper ends excluded."""

    x1: int
    y1: int
    x2: int
    y2: int

    def overlap(self, other: _Rect) -> int:
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        return max(width, 0) * max(height, 0)


def draw_detections(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    labels: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    *,
    min_size: int = 0,
) -> Image.Image:
    """A copy of `image` with boxes drawn on it, each in the colour of its class and tagged with class and score.

    Lines and letters grow with the image. A tag stays inside the image and keeps clear of other tags where there is
    room; boxes with higher scores come out on top. Boxes that are not finite or lie outside the image are not drawn.

    Args:
        image: uint8 [H, W, 3], RGB.
        boxes: [K, 4] xyxy, pixels of `image`.
        labels: [K], 1-based index into `class_names` (0 is the network's background). None: no class in the tags.
        scores: [K] in [0, 1], or None: no score in the tags.
        class_names: names of the classes 1, 2, ...; where there is none for a label the tag reads ``class 7``.
        min_size: enlarge an image whose longer side has fewer pixels (a small one has no room for tags).

    Raises:
        ValueError: a shape, length or dtype is not the one stated here.
        ImportError: Pillow is missing (``pip install 'fastssd[viz]'``).
    """
    box_array = np.asarray(boxes, np.float64)
    count = len(box_array)
    label_array, score_array = _column("labels", labels, count), _column("scores", scores, count)
    texts = [
        _tag_text(
            None if label_array is None else int(label_array[i]),
            None if score_array is None else float(score_array[i]),
            class_names,
        )
        for i in range(count)
    ]
    colors = [class_color(1 if label_array is None else int(label_array[i])) for i in range(count)]
    order = None if score_array is None else np.argsort(-score_array, kind="stable")
    return draw_boxes(image, box_array, texts, colors, order=order, min_size=min_size)


def draw_boxes(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    texts: Sequence[str],
    colors: Sequence[str],
    *,
    order: ArrayLike | None = None,
    min_size: int = 0,
) -> Image.Image:
    """As :func:`draw_detections`, with the text and the colour of each box given.

    Args:
        image, boxes, min_size: as there.
        texts: of each box; an empty one gets no tag.
        colors: of each box, ``#rrggbb``.
        order: [K], the boxes from the uppermost down; default as they come.
    """
    picture = _to_picture(image)
    box_array = np.asarray(boxes, np.float64)
    if box_array.size == 0:
        box_array = box_array.reshape(0, 4)
    if box_array.ndim != 2 or box_array.shape[1] != 4:
        raise ValueError(f"boxes must have shape [K, 4], got {list(box_array.shape)}")
    if not len(texts) == len(colors) == len(box_array):
        raise ValueError(f"texts, colors: expected one for each of the {len(box_array)} boxes")

    if 0 < max(picture.size) < min_size:
        zoom = min_size / max(picture.size)
        box_array = box_array * zoom
        from PIL import Image

        size = (max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)

    places = range(len(box_array)) if order is None else np.asarray(order).tolist()
    drawn = [(i, rect) for i in places if (rect := _to_pixels(box_array[i], picture.size)) is not None]
    for i, rect in reversed(drawn):
        _draw_box(picture, rect, colors[i])
    font = _font(font_size(picture.size), "".join(texts))
    tags: list[tuple[_Rect, str, str]] = []
    for i, rect in drawn:
        tag = _place_tag(texts[i], rect, picture.size, font, [placed for placed, _, _ in tags])
        if tag is not None:
            tags.append((*tag, colors[i]))
    for place, text, color in reversed(tags):
        _draw_tag(picture, place, text, color, font)
    return picture


def picture_grid(pictures: Sequence[Image.Image], *, columns: int = 3, gap: int = 8) -> Image.Image:
    """Pictures side by side, row by row, on white; every cell has the size of the largest picture.

    Args:
        pictures: at least one.
        columns: pictures a row.
        gap: pixels between the pictures and around them.

    Raises:
        ValueError: no picture, or less than one column.
    """
    if not pictures or columns < 1:
        raise ValueError(f"a grid needs pictures and columns, got {len(pictures)} pictures and {columns} columns")
    from PIL import Image

    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        x = gap + column * (width + gap) + (width - picture.width) // 2
        y = gap + row * (height + gap) + (height - picture.height) // 2
        sheet.paste(picture, (x, y))
    return sheet


def font_size(size: tuple[int, int]) -> int:
    """Height of a tag's letters in pixels for an image of this size: grows with the square root of its area."""
    return max(SMALLEST_FONT, round(0.026 * math.sqrt(size[0] * size[1])))


def _to_picture(image: NDArray[np.uint8]) -> Image.Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("drawing needs Pillow; install it with: pip install 'fastssd[viz]'") from error
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"image must be uint8 of shape [H, W, 3], got {array.dtype} {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array)).copy()


def _column(name: str, values: ArrayLike | None, count: int) -> NDArray[Any] | None:
    if values is None:
        return None
    array = np.asarray(values).reshape(-1)
    if len(array) != count:
        raise ValueError(f"{name} must have one entry for each of the {count} boxes, got {len(array)}")
    return array


def _to_pixels(box: NDArray[np.float64], size: tuple[int, int]) -> _Rect | None:
    """The pixels a box covers, at least one; None where no part of it is in the image."""
    if not np.isfinite(box).all():
        return None
    width, height = size
    x1, x2 = sorted((box[0], box[2]))
    y1, y2 = sorted((box[1], box[3]))
    if x2 < 0 or y2 < 0 or x1 > width or y1 > height:
        return None
    left, top = min(round(max(x1, 0.0)), width - 1), min(round(max(y1, 0.0)), height - 1)
    right, bottom = max(round(min(x2, width)), left + 1), max(round(min(y2, height)), top + 1)
    return _Rect(left, top, right, bottom)


def _draw_box(picture: Image.Image, rect: _Rect, color: str) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    shorter = min(rect.x2 - rect.x1, rect.y2 - rect.y1)
    line = max(1, min(max(2, round(math.sqrt(picture.width * picture.height) / 180)), shorter // 8))
    halo = max(1, line // 4)

    def frame(grow: int, width: int, fill: str) -> None:
        corners = (rect.x1 - grow, rect.y1 - grow, rect.x2 - 1 + grow, rect.y2 - 1 + grow)
        if shorter > 2 * width:
            draw.rectangle(corners, outline=fill, width=width)
        else:
            draw.rectangle(corners, fill=fill)

    # A light and a dark line side by side: one of the two stands out on any background. Small boxes get no inner one.
    inner = halo if shorter > 4 * (line + 2 * halo) else 0
    frame(halo, halo + line + inner, contrast(color))
    frame(0, line, color)


def _tag_text(label: int | None, score: float | None, class_names: Sequence[str] | None) -> str:
    parts = []
    if label is not None:
        names = class_names or ()
        name = " ".join(names[label - 1].split()) if 1 <= label <= len(names) else f"class {label}"
        parts.append(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…")
    if score is not None:
        parts.append(f"{score:.2f}")
    return " ".join(parts)


def _place_tag(
    text: str, box: _Rect, size: tuple[int, int], font: ImageFont.FreeTypeFont, taken: Sequence[_Rect]
) -> tuple[_Rect, str] | None:
    """Where the tag goes and what fits on it; None where the image has no room for any tag."""
    pad = _padding(font)
    ascent, descent = font.getmetrics()
    height = ascent + descent + pad
    while text and font.getlength(text) + 2 * pad > size[0]:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    if not text or height > size[1]:
        return None
    width = min(math.ceil(font.getlength(text)) + 2 * pad, size[0])
    xs = {"left": box.x1, "right": box.x2 - width}
    ys = {"above": box.y1 - height, "inside top": box.y1, "below": box.y2, "inside bottom": box.y2 - height}
    best, least = None, math.inf
    for x_place, y_place in _TAG_PLACES:
        x = min(max(xs[x_place], 0), size[0] - width)
        y = ys[y_place]
        outside = max(-y, y + height - size[1], 0)
        y = min(max(y, 0), size[1] - height)
        tag = _Rect(x, y, x + width, y + height)
        cost = sum(tag.overlap(other) for other in taken) + outside * width / 4
        if cost < least:
            best, least = tag, cost
        if cost == 0:
            break
    assert best is not None
    return best, text


def _draw_tag(picture: Image.Image, place: _Rect, text: str, color: str, font: ImageFont.FreeTypeFont) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    pad = _padding(font)
    corners = (place.x1, place.y1, place.x2 - 1, place.y2 - 1)
    draw.rectangle(corners, fill=color)
    ascent, _ = font.getmetrics()
    draw.text((place.x1 + pad, place.y1 + pad // 2 + ascent), text, fill=text_color(color), font=font, anchor="ls")


def _padding(font: ImageFont.FreeTypeFont) -> int:
    return max(2, round(font.size / 4))


def _font(size: int, text: str) -> ImageFont.FreeTypeFont:
    """Pillow's own font, or the first installed one that has a glyph for every letter of `text`."""
    from PIL import ImageFont

    default = ImageFont.load_default(size)
    assert isinstance(default, ImageFont.FreeTypeFont)
    letters = sorted(set(text) - {" "})
    for name in (None, *_MORE_FONTS):
        try:
            font = default if name is None else ImageFont.truetype(name, size)
        except OSError:
            continue  # not installed
        missing = bytes(font.getmask("\U0010ffff"))
        if all(bytes(font.getmask(letter)) != missing for letter in letters):
            return font
    return default
