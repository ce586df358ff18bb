"""Fine-tuning of one session in a learner process, a slice at a time. Knows torch.

Everything that a slice changes is in the checkpoint; episodes are added by their number, so a learner that takes over from a checkpoint
neither repeats nor loses one.
"""

import math
import tempfile
import time
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from pathlib import Path

import msgspec
import torch

from service.acting import learning_due
from service.guards import PARITY_STATES, find_fault
from service.held_back_check import judge, log_chosen, no_worse, numbers, told
from service.policies import Networks, PolicyWeights
from service.session_state import EpisodeRecord, Loaded
from service.sessions import SessionStore
from service.settings import Settings
from service.versions import Candidate, VersionStore
from training.contract.context import Floats, unpack_vector
from training.finetuning import Finetuner
from training.held_back import Estimate

_SHARE_OF_LEASE = 0.25  # a slice must end well before the lease does
_BEHIND_EPISODES = 3  # a learner that owes the gradient steps of so many does not wait with publishing until it has made them all


class LeaseLost(Exception):
    """Another learner has the session, or it is gone."""


class Turn(Enum):
    """What a slice came to; interrupted: the lease was lost on the way."""

    WORKED = auto()
    INTERRUPTED = auto()
    CAUGHT_UP = auto()


@dataclass(frozen=True)
class Stores:
    """What a learner reads and writes."""

    sessions: SessionStore
    versions: VersionStore


class SessionLearner:
    """One session's fine-tuning. Its lease is held by ``name`` while `advance` runs."""

    def __init__(self, session_id: str, name: str, networks: Networks, stores: Stores, settings: Settings) -> None:
        self.session_id, self._name = session_id, name
        self._networks, self._stores, self._settings = networks, stores, settings
        self._finetuner: Finetuner | None = None
        self._losses: dict[str, float | None] = {}
        self._update_s = 0.0
        self._checkpoint_at = 0.0
        self._unpublished = 0  # gradient steps since the last publication
        self._more_to_publish = False  # that one came before all steps were made

    def advance(self) -> Turn:
        """One slice: add what is new, make some gradient steps, publish when all are made.

        Where episodes come faster than they are learned from, which may go on for good, it publishes before that, after an episode's worth.

        Raises LeaseLost, ServiceError when the session is closed or expired, and whatever fine-tuning raises.
        """
        loaded = self._stores.sessions.load(self.session_id)
        progress = self._stores.versions.progress(loaded.keys)
        if progress.paused or not learning_due(loaded.session):
            self.leave(loaded)
            self._report(loaded, state="idle")
            return Turn.CAUGHT_UP
        finetuner = self._finetuner = self._finetuner or self._restore(loaded)
        if progress.restart is not None:
            self._begin_again(loaded, finetuner, progress.restart)
        self._add_episodes(loaded, finetuner)
        new_episodes, due = progress.episodes_learned < finetuner.episodes, finetuner.updates_due()
        if due > 0 and not (new_episodes and self._is_behind(finetuner)):
            self._update(loaded, finetuner)
            return Turn.WORKED
        if new_episodes or self._more_to_publish:
            self._publish(loaded, finetuner)
            self._more_to_publish = due > 0
            if _sound(finetuner):
                return Turn.WORKED
            self._finetuner = None  # the next episode goes on from the last sound checkpoint
        self._report(loaded, state="idle")
        return Turn.CAUGHT_UP

    def forget(self) -> None:
        """Drop what is in memory: another learner may have gone on from the checkpoint."""
        self._finetuner = None

    def leave(self, loaded: Loaded | None = None) -> None:
        """Store a checkpoint before this learner turns away."""
        if self._finetuner is not None:
            self._save(loaded or self._stores.sessions.load(self.session_id), self._finetuner)

    def fail(self, reason: str) -> None:
        """Say that fine-tuning failed; the next completed episode tries again from the last checkpoint."""
        self._finetuner = None
        self._report(self._stores.sessions.load(self.session_id), state="failed", error=reason)
        self._stores.versions.count(failures=1)

    def _restore(self, loaded: Loaded) -> Finetuner:
        """From the checkpoint, else at the bundle's starting point for the task posterior of all complete episodes."""
        self._report(loaded, state="running")
        bundle = self._networks.bundle
        if (checkpoint := self._stores.versions.load_checkpoint(loaded.keys)) is not None:
            with tempfile.TemporaryDirectory(prefix="skillet-") as folder:
                file = Path(folder) / "checkpoint.safetensors"
                file.write_bytes(checkpoint)
                return Finetuner.load(bundle, file)
        records = self._stores.sessions.episodes(loaded.keys)
        mean, _ = self._networks.infer_task(self._rows(loaded, 0, records[-1].end_row))
        return Finetuner.from_bundle(bundle, mean, loaded.session.seed)

    def _begin_again(self, loaded: Loaded, finetuner: Finetuner, version: int) -> None:
        """From a version that the session went back to; the bundle's own if its weights are gone."""
        weights = self._stores.versions.weights(loaded.keys, version) if version else None
        if weights is None:
            records = self._stores.sessions.episodes(loaded.keys)
            finetuner.begin_again(None, self._networks.infer_task(self._rows(loaded, 0, records[-1].end_row))[0])
        else:
            finetuner.begin_again(weights.arrays(), unpack_vector(weights.task_embedding))
        if not self._stores.versions.save_checkpoint(loaded.keys, self._name, _packed(finetuner), restarted=version):
            raise LeaseLost(self.session_id)
        self._checkpoint_at = time.monotonic()

    def _add_episodes(self, loaded: Loaded, finetuner: Finetuner) -> None:
        infer_again, end_row = False, 0
        for record in self._stores.sessions.episodes(loaded.keys, first=finetuner.episodes):
            end_row = record.end_row
            rows = self._rows(loaded, record.first_row, record.end_row)
            context = partial(self._rows, loaded, 0, record.first_row)
            chosen = log_chosen(loaded, record, rows, context, self._networks, self._stores.versions)
            infer_again |= finetuner.add_episode(rows, chosen)
        if infer_again:
            mean, _ = self._networks.infer_task(self._rows(loaded, 0, end_row))
            finetuner.task_embedding = torch.from_numpy(mean)

    def _update(self, loaded: Loaded, finetuner: Finetuner) -> None:
        began, count = time.monotonic(), min(finetuner.updates_due(), self._slice())
        self._losses = {name: value if math.isfinite(value) else None for name, value in finetuner.update(count).items()}
        took_s = time.monotonic() - began
        self._update_s = took_s / count
        self._unpublished += count
        if time.monotonic() - self._checkpoint_at >= self._settings.checkpoint_interval_s:
            self._save(loaded, finetuner)
        self._stores.versions.count(updates=count, update_seconds=took_s)
        self._report(loaded, state="running", updates=finetuner.updates, losses=msgspec.json.encode(self._losses))

    def _is_behind(self, finetuner: Finetuner) -> bool:
        """Whether a version is to be published though many more gradient steps are due."""
        config = finetuner.config
        worth = self._unpublished >= config.updates_per_episode and finetuner.updates >= config.warm_start_updates
        return worth and finetuner.updates_due() >= _BEHIND_EPISODES * config.updates_per_episode

    def _slice(self) -> int:
        wanted = self._settings.slice_updates
        if self._update_s == 0.0:
            return min(wanted, 5)  # the first steps show how long one takes
        return max(1, min(wanted, int(_SHARE_OF_LEASE * self._settings.lease_s / self._update_s)))

    def _publish(self, loaded: Loaded, finetuner: Finetuner) -> None:
        weights = PolicyWeights.pack(finetuner.task_embedding.numpy(), finetuner.policy_weights())
        newest = self._rows(loaded, max(0, loaded.session.rows - PARITY_STATES), loaded.session.rows)
        kl_limit = float(self._networks.bundle.manifest.finetuning["kl_limit"])
        fault = find_fault(finetuner, weights, self._networks, newest[:, self._networks.layout.state], kl_limit)
        judged = None if fault else self._judge(loaded, finetuner)
        if judged is not None and judged.worse:
            fault = f"it is worse than version {loaded.current_version}, which serves, {told(judged)}"
        kl, plural = finetuner.policy_kl(), "" if finetuner.episodes == 1 else "s"
        records = self._stores.sessions.episodes(loaded.keys, first=finetuner.episodes - 1)
        if not records:
            self._stores.sessions.load(self.session_id)  # says that the session was closed meanwhile, with its episodes
        last: EpisodeRecord = records[0]
        candidate = Candidate(
            weights=None if fault else weights,
            reason=fault or f"fine-tuned on {finetuner.episodes} episode{plural} with {finetuner.updates} updates" + no_worse(judged),
            episode=last.episode,
            episodes_learned=finetuner.episodes,
            metrics={
                **self._losses,
                "policy_kl": kl if math.isfinite(kl) else None,
                "updates": float(finetuner.updates),
                **numbers(judged),
            },
            checkpoint=_packed(finetuner) if _sound(finetuner) else b"",
            needs_approval=loaded.session.promotion == "manual",
        )
        version = self._stores.versions.publish(loaded.keys, self._name, candidate, self._settings.kept_versions)
        if version < 0:
            raise LeaseLost(self.session_id)
        self._unpublished = 0
        self._checkpoint_at = time.monotonic()

    def _judge(self, loaded: Loaded, finetuner: Finetuner) -> Estimate | None:
        serving = self._stores.versions.policy(loaded.keys, loaded.current_version, self._networks)
        return None if serving is None else judge(finetuner, serving, self._networks)

    def _save(self, loaded: Loaded, finetuner: Finetuner) -> None:
        if not _sound(finetuner):
            return  # the checkpoint before is the better one to go on from
        if not self._stores.versions.save_checkpoint(loaded.keys, self._name, _packed(finetuner)):
            raise LeaseLost(self.session_id)
        self._checkpoint_at = time.monotonic()

    def _report(self, loaded: Loaded, **fields: str | int | bytes) -> None:
        if not self._stores.versions.report(loaded.keys, self._name, **fields):
            raise LeaseLost(self.session_id)

    def _rows(self, loaded: Loaded, first_row: int, end_row: int) -> Floats:
        return self._stores.sessions.context(loaded.keys, first_row, end_row, self._networks.layout.width)


def _sound(finetuner: Finetuner) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in finetuner.networks.parameters())


def _packed(finetuner: Finetuner) -> bytes:
    with tempfile.TemporaryDirectory(prefix="skillet-") as folder:
        file = Path(folder) / "checkpoint.safetensors"
        finetuner.save(file)
        return file.read_bytes()
