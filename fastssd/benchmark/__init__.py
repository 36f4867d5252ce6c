"""Benchmarks: the same workloads for our backends and for every peer that is installed."""

from fastssd.benchmark.measure import Measurement, environment, measure
from fastssd.benchmark.workloads import Workload, workloads

__all__ = ["Measurement", "Workload", "environment", "measure", "workloads"]
