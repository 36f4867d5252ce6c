"""Downloads weights from their publisher, once, and compares their checksum."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse

import torch

from fastssd.detection.weights.formats import WeightsError


def fetch(url: str) -> Path:
    """Download a file, or find it if it was downloaded before.

    The file is kept where ``torch.hub.load_state_dict_from_url`` keeps it too, so both share one copy. It is downloaded
    under a temporary name and renamed when its checksum is right. The checksum of a file that exists is compared too.

    Args:
        url: the file name ends in ``-`` and the beginning of its SHA-256, as is usual for weights.

    Raises:
        ValueError: the file name has no checksum.
        WeightsError: no connection, an incomplete download, or a wrong checksum.
    """
    name = Path(urlparse(url).path).name
    found = re.search(r"-([0-9a-f]{8,})\.", name)
    if not found:
        raise ValueError(f"url: the file name has no checksum in it: {name}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        if not _digest(path).startswith(found[1]):
            raise WeightsError(f"{path} differs from {url} (SHA-256 {found[1]}...); delete it and try again")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), found[1], progress=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's for a wrong checksum
        reason = "it is incomplete or was changed: wrong checksum" if isinstance(error, RuntimeError) else str(error)
        raise WeightsError(f"cannot download {url}: {reason}. If you have the file, copy it to {path}") from error
    return path


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
