"""The image files that a command reads, and the files that it draws."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def expand_folders(paths: Sequence[Path]) -> list[str]:
    """`paths` with every folder replaced by the images in it; each path once."""
    from fastssd.data.folder import images_in

    found: dict[str, None] = {}
    for path in paths:
        if path.is_dir():
            inside = images_in(str(path))
            if not inside:
                raise FileNotFoundError(errno.ENOENT, "there are no images in this folder", str(path))
            found |= dict.fromkeys(str(path / name) for name in inside)
        else:
            found[str(path)] = None
    return list(found)


def check_originals(paths: Iterable[str], out: Path) -> None:
    """Raise ValueError if an original is in the folder of the drawn images, where it could be overwritten."""
    target = os.path.realpath(out)
    real = functools.cache(os.path.realpath)
    for path in paths:
        folder, name = os.path.split(path)
        real_path = os.path.join(real(folder), name)
        if os.path.islink(real_path):
            real_path = os.path.realpath(real_path)
        if os.path.dirname(real_path) == target:
            raise ValueError(f"{path} is in {out}, the folder of the drawn images; choose another one with --out")


def with_targets(paths: Iterable[str], done: Iterable[str], out: Path) -> Iterator[tuple[str, str]]:
    """Each path, and the path of its drawn image in the folder `out`.

    A drawn image has the original's name, with a number if several originals have the same. JPEG is drawn as JPEG,
    all others as PNG. The names of the originals in `done` are taken already.
    """
    taken: set[str] = set()
    latest: dict[str, int] = {}

    def target(path: str) -> str:
        stem, suffix = os.path.splitext(os.path.basename(path))
        suffix = ".jpg" if suffix.lower() in (".jpg", ".jpeg") else ".png"
        name = stem + suffix
        while name in taken:
            latest[stem + suffix] = latest.get(stem + suffix, 1) + 1
            name = f"{stem}-{latest[stem + suffix]}{suffix}"
        taken.add(name)
        return str(out / name)

    for path in done:
        target(path)
    for path in paths:
        yield path, target(path)
