"""No operator is missing in tests/operators: what is not there is tested by no table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastssd
from fastssd import ops
from tests.operators import EXAMPLES, FAMILIES, OPERATORS, PUBLIC


def test_every_public_function_is_an_operator():
    assert {name for name in ops.__all__ if name.islower()} == set(PUBLIC)


def test_families_of_tests_are_the_families_of_operators():
    assert FAMILIES.keys() == {path.stem for path in (Path(fastssd.__file__).parent / "ops").glob("[a-z]*.py")}


def test_no_operator_is_missing():
    assert EXAMPLES.keys() == set(OPERATORS)


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_are_in_the_file_of_the_operators_family(name):
    assert name in FAMILIES[getattr(ops, name).__module__.rpartition(".")[2]].EXAMPLES


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_samples_and_bad_input(name):
    assert EXAMPLES[name].samples
    assert EXAMPLES[name].bad


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operator_has_cases(family):
    names = {case.operator for case in FAMILIES[family].cases(np.random.default_rng(0))}
    assert names == FAMILIES[family].EXAMPLES.keys()


@pytest.mark.parametrize("page", ["README.md", "docs/torch.md"])
def test_every_public_operator_is_on_the_page(page):
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    assert [name for name in PUBLIC if f"`{name}`" not in text] == []
