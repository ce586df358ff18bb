"""Fine-tuned policies of sessions, ready before they are needed: read from Redis and built off the event loop, kept for the next choice."""

import asyncio
from collections.abc import Callable

from service import skill_choice
from service.errors import UnknownVersion
from service.policies import MetaPolicy, Networks, PolicyCache
from service.session_state import Loaded
from service.versions import VersionStore

Wanted = Callable[[Loaded, int], int | None]
"""Which version a session's next action needs, given the horizon H; None: none (`acting.wanted_version`)."""


class PolicyLoader:
    """The policies of one process. At most ``capacity`` fine-tuned ones are kept."""

    def __init__(self, versions: VersionStore, capacity: int) -> None:
        self._versions, self._cache = versions, PolicyCache(capacity)
        self._loading: dict[tuple[str, int], asyncio.Task[MetaPolicy]] = {}

    def at_hand(self, loaded: Loaded, networks: Networks, wanted: Wanted) -> MetaPolicy | None:
        """The policy that the next action needs; None when a running skill is kept. Raises LookupError when it has to be loaded first."""
        version = wanted(loaded, networks.spec.skill_horizon)
        if version is None:
            return None
        if version == 0:
            return networks.meta_policy
        if (policy := self._cache.get(loaded.session.session_id, version)) is None:
            raise LookupError(version)
        return policy

    async def get(self, loaded: Loaded, networks: Networks, wanted: Wanted) -> MetaPolicy | None:
        """As `at_hand`, but waits for it. Raises UnknownVersion when its weights are gone."""
        try:
            return self.at_hand(loaded, networks, wanted)
        except LookupError as missing:
            return await asyncio.shield(self._load(loaded, networks, missing.args[0]))

    def prepare(self, loaded: Loaded, networks: Networks) -> None:
        """Begin to load the version that the next skill will be chosen with, so that the step that chooses need not wait."""
        version = loaded.current_version
        if version and skill_choice.follows_versions(loaded.session) and not self.holds(loaded.session.session_id, version):
            self._load(loaded, networks, version)

    def holds(self, session_id: str, version: int) -> bool:
        """Whether a version is ready."""
        return self._cache.get(session_id, version) is not None

    def _load(self, loaded: Loaded, networks: Networks, version: int) -> asyncio.Task[MetaPolicy]:
        """The loading of a version, begun if it was not."""
        wanted = (loaded.session.session_id, version)
        if (task := self._loading.get(wanted)) is None:
            task = self._loading[wanted] = asyncio.create_task(asyncio.to_thread(self._read, loaded, networks, version))
            task.add_done_callback(lambda done: self._loaded(wanted, done))
        return task

    def _read(self, loaded: Loaded, networks: Networks, version: int) -> MetaPolicy:
        policy = self._versions.policy(loaded.keys, version, networks)
        if policy is None:
            raise UnknownVersion(f"the weights of policy version {version} are gone", received=version, action="Roll back to another.")
        return policy

    def _loaded(self, wanted: tuple[str, int], done: asyncio.Task[MetaPolicy]) -> None:
        del self._loading[wanted]
        if not done.cancelled() and done.exception() is None:  # whoever waits for it sees the error; else the next one tries again
            self._cache.put(wanted[0], done.result())
