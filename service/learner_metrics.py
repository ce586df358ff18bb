"""Metrics of learners and their queue, read from Redis with each scrape: the same whichever API process is asked, on whatever machine."""

import logging
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from service.jobs import Backlog, JobQueue
from service.versions import VersionStore

_log = logging.getLogger(__name__)


class LearnerMetrics(Collector):
    """Totals of what learners did, and what waits for them; without values while Redis does not answer."""

    def __init__(self, versions: VersionStore, jobs: JobQueue) -> None:
        self._versions, self._jobs = versions, jobs

    def describe(self) -> Iterator[Metric]:
        """The names, without reading anything."""
        return iter([*_totals(None), *_queue(None)])

    def collect(self) -> Iterator[Metric]:
        """The values."""
        try:
            totals, backlog = self._versions.counters(), self._jobs.backlog()
        except RedisError as error:
            _log.warning("metrics without those of learners: Redis does not answer (%s)", type(error).__name__)
            totals, backlog = None, None
        yield from _totals(totals)
        yield from _queue(backlog)


def _totals(found: dict[str, float] | None) -> Iterator[Metric]:
    versions = CounterMetricFamily("skillet_versions", "Policy versions made by learners, by result", labels=["result"])
    if found is not None:
        for result in ("published", "rejected"):
            versions.add_metric([result], found.get(f"versions_{result}", 0))
    yield versions
    counters = {
        "updates": ("skillet_learner_updates", "Gradient steps made"),
        "update_seconds": ("skillet_learner_update_seconds", "Time spent on gradient steps"),
        "failures": ("skillet_learner_failures", "Sessions whose fine-tuning failed"),
    }
    for field, (name, text) in counters.items():
        yield CounterMetricFamily(name, text, value=None if found is None else found.get(field, 0))


def _queue(backlog: Backlog | None) -> Iterator[Metric]:
    gauges = {
        "skillet_jobs_waiting": "Sessions that wait for a learner",
        "skillet_jobs_in_work": "Sessions that learners work on",
        "skillet_jobs_oldest_wait_seconds": "How long the one that waits longest has waited",
        "skillet_learners": "Learners that showed life in the last half minute",
    }
    values = [None] * 4 if backlog is None else [backlog.waiting, backlog.in_work, backlog.oldest_wait_s, backlog.learners]
    for (name, text), value in zip(gauges.items(), values, strict=True):
        gauge = GaugeMetricFamily(name, text)
        if value is not None:
            gauge.add_metric([], value)
        yield gauge
