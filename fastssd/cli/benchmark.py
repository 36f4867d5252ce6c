"""``fastssd benchmark``."""

from __future__ import annotations

from typing import Annotated

import typer

from fastssd.cli.common import Json, command, print_json, say


@command()
def benchmark(
    only: Annotated[str, typer.Option(help="Workloads whose name has this in it.", show_default="all")] = "",
    seconds: Annotated[float, typer.Option(min=0.01, help="For each implementation of each workload.")] = 0.3,
    as_json: Json = False,
) -> None:
    """Time the operators here, beside every peer that is installed: about two minutes.

    Each implementation has to give the same result before it is timed; inputs rotate, and implementations take turns.

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
    found = []
    for workload in chosen:
        say(workload.name)
        found.append(measure(workload, seconds))
    if as_json:
        measurements = [measurement._asdict() for group in found for measurement in group]
        print_json({"environment": environment(), "measurements": measurements})
        return
    for group in found:
        print(table(group))
