"""Every Redis key, and how long it lives. All keys of a session carry its id as hash tag, so that they share a slot on Redis Cluster.

| key                         | type   | holds                                                                        | written by   |
|-----------------------------|--------|------------------------------------------------------------------------------|--------------|
| ``skillet:{ID}:session``    | hash   | ``body``: the session (msgpack); ``current``: the policy version to act with | API, learner |
| ``skillet:{ID}:context``    | string | skill transitions, float32 rows in the order in which they were completed    | API          |
| ``skillet:{ID}:episodes``   | list   | one record (JSON) per completed episode: its number and rows                 | API          |
| ``skillet:{ID}:task``       | hash   | newest task posterior: version, mean, scale                                  | API          |
| ``skillet:{ID}:finetuning`` | hash   | paused, queued job, holder, state, progress, error                           | both         |
| ``skillet:{ID}:policy``     | hash   | version number -> record (JSON)                                              | both         |
| ``skillet:{ID}:log``        | list   | what was told and answered, in order (msgpack): `service.session_log`        | API          |
| ``skillet:{ID}:history``    | list   | what became of versions, when and why (JSON), the newest last                | both         |
| ``skillet:{ID}:weights``    | hash   | version number -> weights (msgpack)                                          | learner      |
| ``skillet:{ID}:checkpoint`` | string | the learner's checkpoint (safetensors)                                       | learner      |
| ``skillet:{ID}:lease``      | string | name of the learner that works on the session; expires unless renewed        | learner      |
| ``skillet:{ID}:known``      | string | ``open`` or ``closed``; outlives the session, so that it gets 410, not 404   | API          |
| ``skillet:sessions``        | zset   | ids (they start with their time of creation)                                 | API          |
| ``skillet:owned:{OWNER}``   | zset   | ids of the sessions of one owner, as above                                   | API          |
| ``skillet:tokens``          | hash   | token's id -> record (JSON) with its hash: `service.tokens`                  | API, CLI     |
| ``skillet:tokens:version``  | string | changes with every change of a token                                         | API, CLI     |
| ``skillet:tokens:first``    | string | there while a service makes the first token; for a minute                    | service      |
| ``skillet:jobs``            | stream | sessions with episodes to learn from; consumer group ``learners``            | API          |
| ``skillet:creation:{HASH}`` | string | which session an ``Idempotency-Key`` created; for a day                       | API          |
| ``skillet:counters``        | hash   | totals of what learners and the reaper did, for /metrics                     | both         |
| ``skillet:reaper``          | string | there while expired sessions have been looked for lately                     | service      |
| ``skillet:writable``        | string | never there: whether it could be written is what /readyz asks                | API          |
"""

from dataclasses import dataclass
from typing import Final

SESSIONS: Final = "skillet:sessions"
JOBS: Final = "skillet:jobs"
LEARNERS: Final = "learners"
COUNTERS: Final = "skillet:counters"
REAPER: Final = "skillet:reaper"
WRITABLE: Final = "skillet:writable"
TOKENS: Final = "skillet:tokens"
TOKENS_VERSION: Final = "skillet:tokens:version"
FIRST_TOKEN: Final = "skillet:tokens:first"

KNOWN_EXTRA_MS: Final = 7 * 24 * 3600 * 1000
"""How much longer than a session itself its ``known`` key lives."""


def creation(key_hash: str) -> str:
    """Which session an idempotency key created."""
    return f"skillet:creation:{key_hash}"


def owned(owner: str) -> str:
    """The sessions of one owner."""
    return f"skillet:owned:{owner}"


@dataclass(frozen=True)
class SessionKeys:
    """The keys of one session."""

    session_id: str

    def _key(self, what: str) -> str:
        return f"skillet:{{{self.session_id}}}:{what}"

    @property
    def session(self) -> str:
        """Body and current policy version."""
        return self._key("session")

    @property
    def context(self) -> str:
        """Skill transitions."""
        return self._key("context")

    @property
    def episodes(self) -> str:
        """Records of completed episodes."""
        return self._key("episodes")

    @property
    def task(self) -> str:
        """Newest task posterior."""
        return self._key("task")

    @property
    def finetuning(self) -> str:
        """Progress of fine-tuning."""
        return self._key("finetuning")

    @property
    def policy(self) -> str:
        """Records of policy versions."""
        return self._key("policy")

    @property
    def log(self) -> str:
        """What was told to the session and what it answered."""
        return self._key("log")

    @property
    def history(self) -> str:
        """What became of policy versions."""
        return self._key("history")

    @property
    def weights(self) -> str:
        """Weights of policy versions."""
        return self._key("weights")

    @property
    def checkpoint(self) -> str:
        """The learner's checkpoint."""
        return self._key("checkpoint")

    @property
    def lease(self) -> str:
        """Which learner works on the session."""
        return self._key("lease")

    @property
    def known(self) -> str:
        """Remembers that there was a session of this id."""
        return self._key("known")

    @property
    def written(self) -> tuple[str, str]:
        """The keys that every control step writes."""
        return self.session, self.log

    @property
    def lasting(self) -> list[str]:
        """The keys that live as long as the session: the written ones first, then context and episodes."""
        return [
            *self.written,
            self.context,
            self.episodes,
            self.task,
            self.finetuning,
            self.policy,
            self.weights,
            self.checkpoint,
            self.history,
        ]
