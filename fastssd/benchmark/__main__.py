"""``python -m fastssd.benchmark``: the quick workloads as a table, or as JSON lines for a program."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable

from fastssd.benchmark.measure import Measurement, environment, measure
from fastssd.benchmark.workloads import workloads


def table(measurements: Iterable[Measurement]) -> str:
    """The measurements as text, with a block for each workload."""
    lines, last = [], ""
    for m in measurements:
        if m.workload != last:
            lines.append(f"\n{m.workload}")
            last = m.workload
        ratio = f"{m.ratio:8.1f} x the best peer" if m.ours and m.ratio else ""
        lines.append(f"  {m.implementation:24}{m.seconds * 1e3:12.4f} ms{ratio}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastssd.benchmark", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--all", action="store_true", help="run the long workloads too")
    parser.add_argument("--only", default="", help="run only workloads with this in their name")
    parser.add_argument("--seconds", type=float, default=0.3, help="time per implementation of a workload")
    options = parser.parse_args()
    print(json.dumps(environment()) if options.json else "\n".join(f"{k}: {v}" for k, v in environment().items()))
    for workload in workloads():
        if (workload.quick or options.all) and options.only in workload.name:
            found = measure(workload, options.seconds)
            print("\n".join(json.dumps(m._asdict()) for m in found) if options.json else table(found), flush=True)


if __name__ == "__main__":
    main()
