"""Compare two commits in alternating runs: ``make bench-compare A=main~1 B=main``.

Each is built into a folder of its own in ``build/compare``. Then ``python -m fastssd.benchmark`` runs for both in turn,
and the medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent


def build(revision: str) -> Path:
    """The folder with the package of a commit; built if it does not exist yet."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", f"{revision}^{{commit}}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    site, tree = ROOT / "build" / "compare" / commit, ROOT / "build" / "compare" / f"{commit}-tree"
    if not site.exists():
        print(f"building {revision} ({commit})", flush=True)
        subprocess.run(["git", "worktree", "add", "--force", "--detach", tree, commit], cwd=ROOT, check=True)
        try:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, tree]
            subprocess.run(install, check=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    return site


def run(site: Path, only: str, seconds: float) -> dict[tuple[str, str], float]:
    """Median seconds of our implementations, by workload and implementation."""
    command = [sys.executable, "-m", "fastssd.benchmark", "--json", "--only", only, "--seconds", str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()[1:]]
    return {(m["workload"], m["implementation"]): m["seconds"] for m in found if m["ours"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--only", default="", help="run only workloads with this in their name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.2)
    options = parser.parse_args()
    sites = [build(options.before), build(options.after)]
    times: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for turn in range(options.rounds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            for key, value in run(sites[side], options.only, options.seconds).items():
                times[key][side].append(value)
    print(f"{'':60}{options.before:>14}{options.after:>14}{'before / after':>17}")
    for (workload, implementation), (before, after) in times.items():
        if before and after:
            a, b = statistics.median(before), statistics.median(after)
            print(f"{f'{workload}: {implementation}':60}{a * 1e3:11.4f} ms{b * 1e3:11.4f} ms{a / b:15.2f} x")


if __name__ == "__main__":
    main()
