"""``pytest`` runs the tests and ``pytest --benchmark-only`` the benchmarks, where no path says what to run."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("benchmark_only", default=False) and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.args = ["benchmarks"]
