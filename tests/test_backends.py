"""Every operator in every backend equals the reference, over the cases and samples of tests/operators."""

from __future__ import annotations

import pytest

import fastssd
from fastssd import ops
from fastssd.backends import available_backends
from tests.operators import EXAMPLES, OPERATORS, PUBLIC, SAMPLES, all_cases, difference, outcome

BACKENDS = [name for name in available_backends() if name != "reference"]


@pytest.fixture(scope="module")
def references():
    """Every case of two seeds with what the reference makes of it."""
    with fastssd.use_backend("reference"):
        return [(case, case.call()) for seed in (0, 1) for case in all_cases(seed)]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_equals_reference(backend, operator, references):
    mine = [(case, ref) for case, ref in references if case.operator == operator]
    with fastssd.use_backend(backend):
        problems = {case.name: difference(operator, ref, case.call()) for case, ref in mine}
    assert mine
    assert not {name: problem for name, problem in problems.items() if problem}


@pytest.mark.parametrize(("name", "place"), [(name, place) for name, place in SAMPLES if name in PUBLIC])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_equals_reference_on_samples(backend, name, place):
    results = {}
    for each in ("reference", backend):
        with fastssd.use_backend(each):
            results[each] = outcome(lambda: getattr(ops, name)(**EXAMPLES[name].samples[place]))
    assert difference(name, results["reference"], results[backend]) is None
