"""Metrics of several API processes as one: each counts in files of its own, and any of them answers for all (prometheus_client's way).

The files outlive the processes, so a total never falls when one dies and another takes over. ``python -m service`` names the folder in the
environment before a process imports prometheus_client, which looks at it once. Without it a process counts in memory, for itself.
"""

import os
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

METRICS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"


def registry_of_all(own: CollectorRegistry, *collectors: Collector) -> CollectorRegistry:
    """What a scrape reads: the metrics of all processes, or ``own``; and ``collectors``, which are the same in every process."""
    if METRICS_DIR not in os.environ:
        for collector in collectors:
            own.register(collector)
        return own
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    for collector in collectors:
        registry.register(collector)
    return registry
