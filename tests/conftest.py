"""Fixtures of more than one file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread_of_torch() -> Iterator[None]:
    """Tests run side by side; and a forked child has no threads of OpenMP, for which it would wait."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
