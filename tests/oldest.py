"""The lowest release that pyproject.toml declares of every dependency, as constraints for pip:

python tests/oldest.py > constraints.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def oldest() -> dict[str, str]:
    """Package to release, of all dependencies and extras.

    Raises:
        ValueError: a dependency without a lower bound, or with two.
    """
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    found: dict[str, str] = {}
    for requirement in sum(project["optional-dependencies"].values(), project["dependencies"]):
        if requirement.startswith(project["name"] + "["):  # one extra that includes another
            continue
        bound = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if bound is None or found.get(bound[1], bound[2]) != bound[2]:
            raise ValueError(f"{requirement!r}: expected one lower bound for each package, as in 'numpy>=1.26'")
        found[bound[1]] = bound[2]
    return found


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={release}\n" for name, release in oldest().items())
