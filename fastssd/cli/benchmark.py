"""``fastssd benchmark``."""

from __future__ import annotations

from typing import Annotated

import typer

from fastssd.cli.common import Json, command, print_json, say


@command()
def benchmark(
    only: Annotated[str, typer.Option(help="Run only workloads with this in their name.", show_default="all")] = "",
    seconds: Annotated[float, typer.Option(min=0.01, help="Time per implementation of a workload.")] = 0.3,
    as_json: Json = False,
) -> None:
    """Time the operators on this machine, beside every peer that is installed: about two minutes.

    Each implementation must give the same result before it is timed. They take turns, and so do the inputs.

    \b
    [bold]Examples[/bold]
      fastssd benchmark
      fastssd benchmark --only nms
      fastssd benchmark --json > measured.json
    """
    from fastssd.benchmark import environment, measure, workloads
    from fastssd.benchmark.__main__ import table

    chosen = [workload for workload in workloads() if workload.quick and only in workload.name]
    if not chosen:
        raise typer.BadParameter(f"no workload has {only!r} in its name")
    measured = []
    for workload in chosen:
        say(workload.name)
        measured.append(measure(workload, seconds))
    if as_json:
        measurements = [measurement._asdict() for group in measured for measurement in group]
        print_json({"environment": environment(), "measurements": measurements})
        return
    for group in measured:
        print(table(group))
