"""Saves with a benchmark on which machine it ran."""

from __future__ import annotations

from fastssd.benchmark import environment


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastssd"] = environment()
