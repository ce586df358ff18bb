"""Prometheus metrics. No label names a session: the number of series stays fixed."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from service.versions import VersionStore

_LATENCY_BUCKETS_S = (0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)


class Metrics:
    """The metrics of one API process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "skillet_call_seconds", "Time in the handler of a control loop's call", ["call"], buckets=_LATENCY_BUCKETS_S, registry=registry
        )
        self.errors = Counter("skillet_errors", "Requests answered with a problem, by code", ["code"], registry=registry)
        self.transitions = Counter("skillet_transitions", "Transitions accepted", registry=registry)
        self.skill_transitions = Counter("skillet_skill_transitions", "Skill transitions completed", registry=registry)
        self.episodes = Counter("skillet_episodes", "Episodes completed", registry=registry)
        self.sessions = Counter("skillet_sessions_opened", "Sessions opened", registry=registry)
        self.limited = Counter("skillet_actions_limited", "Actions changed by the safety envelope", ["limit"], registry=registry)
        self.outside = Counter("skillet_observations_outside", "Observations outside the envelope's usual range", registry=registry)
        self.rollbacks = Counter("skillet_automatic_rollbacks", "Sessions that went back to an earlier policy version", registry=registry)
        self.act_seconds = self.seconds.labels("act")
        self.step_seconds = self.seconds.labels("step")
        self.transitions_seconds = self.seconds.labels("transitions")

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def count_versions(self, versions: VersionStore) -> None:
        """Add the learners' totals, read from Redis with each scrape."""
        self.registry.register(_LearnerTotals(versions))


class _LearnerTotals(Collector):
    def __init__(self, versions: VersionStore) -> None:
        self._versions = versions

    def describe(self) -> Iterator[CounterMetricFamily]:
        """The names, without reading anything."""
        yield CounterMetricFamily("skillet_versions", "Policy versions made by learners, by result", labels=["result"])

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The totals; none while Redis does not answer."""
        try:
            totals = self._versions.counters()
        except RedisError:
            totals = {}
        family = CounterMetricFamily("skillet_versions", "Policy versions made by learners, by result", labels=["result"])
        for result in ("published", "rejected"):
            family.add_metric([result], totals.get(f"versions_{result}", 0))
        yield family
