"""The command ``fastssd`` (extra ``cli``; the commands that train or detect need ``train``).

Thin: it reads options, calls the layer that does the work, and says what came out. stdout holds results (with
``--json`` nothing but JSON); progress and errors go to stderr.
Exit status: 0 done, 1 failed (one line says why), 2 wrong usage, 130 interrupted.
"""

from fastssd.cli.common import app

# isort: off
from fastssd.cli import train, evaluate, predict, export, anchors, explain, info, benchmark  # noqa: F401  in this order

# isort: on


def main() -> None:
    """The entry point."""
    app(prog_name="fastssd")
