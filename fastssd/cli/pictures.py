"""Which pictures a command is meant to read, and where those that it draws go."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def expand(images: Sequence[Path]) -> list[str]:
    """The pictures that are meant: files as they are, of folders every picture in them, each once."""
    from fastssd.data.folder import pictures_in

    found: dict[str, None] = {}
    for path in images:
        if path.is_dir():
            inside = pictures_in(str(path))
            if not inside:
                raise FileNotFoundError(errno.ENOENT, "there are no pictures in this folder", str(path))
            found |= dict.fromkeys(str(path / name) for name in inside)
        else:
            found[str(path)] = None
    return list(found)


def check_originals(pictures: Iterable[str], out: Path) -> None:
    """Raise ValueError where an original lies in the folder of the drawn ones, which could take its place."""
    target = os.path.realpath(out)
    real = functools.cache(os.path.realpath)
    for picture in pictures:
        folder, name = os.path.split(picture)
        place = os.path.join(real(folder), name)
        if os.path.islink(place):
            place = os.path.realpath(place)
        if os.path.dirname(place) == target:
            raise ValueError(f"{picture} lies in {out}, where the drawn pictures go; choose another folder with --out")


def with_targets(pictures: Iterable[str], done: Iterable[str], out: Path) -> Iterator[tuple[str, str]]:
    """Each picture and where it is drawn: by the original's name, JPEG as JPEG, numbered where several have one name.

    Those that are `done` have taken their names before.
    """
    taken: set[str] = set()
    latest: dict[str, int] = {}

    def target(picture: str) -> str:
        stem, suffix = os.path.splitext(os.path.basename(picture))
        suffix = ".jpg" if suffix.lower() in (".jpg", ".jpeg") else ".png"
        name = stem + suffix
        while name in taken:
            latest[stem + suffix] = latest.get(stem + suffix, 1) + 1
            name = f"{stem}-{latest[stem + suffix]}{suffix}"
        taken.add(name)
        return str(out / name)

    for picture in done:
        target(picture)
    for picture in pictures:
        yield picture, target(picture)
