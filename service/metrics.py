"""Prometheus metrics. No label names a session: the number of series stays fixed."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.registry import Collector

from service.metrics_files import registry_of_all

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
        self.act_many_seconds = self.seconds.labels("act_many")
        self.step_many_seconds = self.seconds.labels("step_many")
        self.transitions_seconds = self.seconds.labels("transitions")

        self._scraped = registry

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._scraped)

    def add(self, *collectors: Collector) -> None:
        """Add what is read with each scrape, and count together with the other API processes. Once, before the first scrape."""
        self._scraped = registry_of_all(self.registry, *collectors)
