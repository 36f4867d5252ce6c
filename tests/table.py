"""Print how every operator of every backend that runs here compares with the reference: ``python -m tests.table``."""

from __future__ import annotations

import sys
from collections import Counter

import fastssd
from fastssd.backends import available_backends
from tests.operators import EXAMPLES, ULP, all_cases, difference


def main(seeds: int = 3) -> int:
    backends = [name for name in available_backends() if name != "reference"]
    cases = [case for seed in range(seeds) for case in all_cases(seed)]
    total, equal, wrong = Counter(case.operator for case in cases), Counter[tuple[str, str]](), []
    for case in cases:
        with fastssd.use_backend("reference"):
            ref = case.call()
        for name in backends:
            with fastssd.use_backend(name):
                problem = difference(case.operator, ref, case.call())
            if problem is None:
                equal[case.operator, name] += 1
            else:
                wrong.append(f"{name} {case.operator} [{case.name}]: {problem}")

    print(f"{'operator':26}{'equal means':14}" + "".join(f"{name:>14}" for name in backends))
    for operator in total:
        meaning = f"{ULP} ULP" if EXAMPLES[operator].rounded else "bit for bit"
        shares = "".join(f"{f'{equal[operator, name]} / {total[operator]}':>14}" for name in backends)
        print(f"{operator:26}{meaning:14}{shares}")
    print("\n".join(wrong) or f"All {sum(total.values())} cases are equal to the reference in {', '.join(backends)}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
