"""What a saved benchmark says about the machine it ran on."""

from __future__ import annotations

from fastssd.benchmark import environment


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastssd"] = environment()
