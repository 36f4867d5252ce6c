"""Every operator in every backend equals the reference, over the same cases."""

from __future__ import annotations

import pytest

import fastssd
from fastssd.backends import OPERATORS, available_backends
from tests.cases import all_cases, difference


@pytest.fixture(scope="module")
def references():
    """Every case of two seeds with what the reference makes of it."""
    with fastssd.use_backend("reference"):
        return [(case, case.call()) for seed in (0, 1) for case in all_cases(seed)]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "reference"])
def test_backend_equals_reference(backend, operator, references):
    mine = [(case, ref) for case, ref in references if case.operator == operator]
    with fastssd.use_backend(backend):
        problems = {case.name: difference(operator, ref, case.call()) for case, ref in mine}
    assert mine
    assert not {name: problem for name, problem in problems.items() if problem}
