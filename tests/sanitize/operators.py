"""Every case of tests/operators and every case of ``differential``, once: ``python -m tests.sanitize.operators``.

For a build with sanitizers: what it looks for is not in the results, so nothing is compared.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import fastssd
from fastssd import _C
from tests.operators import all_cases
from tests.sanitize.differential import all_hard_cases


def main() -> int:
    np.seterr(all="ignore")
    started = time.monotonic()
    calls = 0
    with fastssd.use_backend("cpp"):
        for threads, cases in ((1, all_cases(0)), (3, all_hard_cases(0))):
            fastssd.set_num_threads(threads)
            for case in cases:
                case.call()
                calls += 1
    print(f"{calls} calls of every operator on {_C.isa()} in {time.monotonic() - started:.0f} s, no report.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
