"""Colours and type shared by every picture fastssd draws.

The colours are the seven of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with any of the common
colour deficiencies tell apart.
"""

from __future__ import annotations

ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)
INK, SOFT_INK, RULE, PAPER = "#16191d", "#5c646e", "#c9ced4", "#ffffff"

_CLASS_COLORS = (ORANGE, BLUE, PURPLE, GREEN, VERMILLION, SKY, YELLOW)


def class_color(label: int) -> str:
    """The colour of a class as ``#rrggbb``; after seven classes they come again, lighter, then darker."""
    round_, place = divmod(label - 1, len(_CLASS_COLORS))
    color = _CLASS_COLORS[place]
    return (color, _mix(color, "#ffffff", 0.45), _mix(color, "#000000", 0.4))[round_ % 3]


def text_color(background: str) -> str:
    """Black or white, whichever is easier to read on `background` (WCAG 2 contrast ratio)."""
    return "#000000" if _luminance(background) > 0.179 else "#ffffff"


def contrast(color: str) -> str:
    """Near-black for light colours, white for dark ones: what a line of `color` is edged with."""
    return INK if _luminance(color) > 0.25 else "#ffffff"


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _mix(color: str, other: str, share: float) -> str:
    mixed = (round(a + (b - a) * share) for a, b in zip(_channels(color), _channels(other), strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _luminance(color: str) -> float:
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in _channels(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
