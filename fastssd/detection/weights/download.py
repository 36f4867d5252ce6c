"""Files from their publisher's address, whole and once."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse

import torch

from fastssd.detection.weights.formats import WeightsError


def fetch(url: str) -> Path:
    """The file of a URL whose name ends in ``-`` and the beginning of its SHA-256, as the publishers of weights do.

    It lies where ``torch.hub.load_state_dict_from_url`` keeps it too, so neither fetches what the other has. It is
    downloaded under another name and moved when its checksum is right; one that lies there is checked as well.

    Raises:
        WeightsError: no connection, a download that broke off, or a wrong checksum.
    """
    name = Path(urlparse(url).path).name
    found = re.search(r"-([0-9a-f]{8,})\.", name)
    if not found:
        raise ValueError(f"url: the file name has no checksum in it: {name}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        if not _digest(path).startswith(found[1]):
            raise WeightsError(f"{path} is not what {url} should be (SHA-256 {found[1]}...); delete it and try again")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), found[1], progress=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's for a wrong checksum
        reason = "it is incomplete or was changed: wrong checksum" if isinstance(error, RuntimeError) else str(error)
        raise WeightsError(f"cannot download {url}: {reason}. From elsewhere, put it there: {path}") from error
    return path


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
