"""The command ``fastssd`` (extra ``cli``; the commands that train or detect need ``train``).

The commands are thin: they read options, call the layer that does the work, and print its results to stdout (with
``--json`` as JSON and nothing else). Progress and errors go to stderr.
Exit status: 0 done, 1 failed (one line says why), 2 wrong usage, 130 interrupted.
"""

from fastssd.cli.common import app

# isort: off
from fastssd.cli import train, evaluate, predict, export, anchors, explain, info, benchmark  # noqa: F401  order of help

# isort: on


def main() -> None:
    """The entry point."""
    app(prog_name="fastssd")
