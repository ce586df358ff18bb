"""Runs of the target-task protocol that are kept on disk as they go, and go on from there, bit for bit."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.checkpoint import load_checkpoint, save_checkpoint
from training.contract.belief import Following
from training.contract.novelty import Places
from training.evaluate import TargetProtocol, TargetSession
from training.run_log import RunLog

CHECKPOINT_EPISODES = 5


def run_sessions(
    protocol: TargetProtocol,
    sessions: list[TargetSession],
    episodes: int,
    folder: Path,
    log: RunLog,
    before_save: Callable[[], None] = lambda: None,
) -> None:
    """Run sessions, as `load_sessions` gives them, to so many episodes. They are kept every few; ``before_save`` is called each time."""
    for episode in range(len(sessions[0].returns), episodes):
        log.report(episode + 1, protocol.advance(sessions, episode))
        if (episode + 1) % CHECKPOINT_EPISODES == 0 or episode + 1 == episodes:
            before_save()
            save_sessions(folder, sessions)


def save_sessions(folder: Path, sessions: Sequence[TargetSession]) -> None:
    """Replace ``folder`` by what the sessions are now. An interruption leaves the old content or the new."""
    new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for index, session in enumerate(sessions):
        lengths = [len(rows) for rows in session.context]
        note = {
            "returns": session.returns,
            "successes": session.successes,
            "steps": session.steps,
            "deterministic_returns": session.deterministic_returns,
            "rewarded": session.rewarded,
            "beyond_from": session.beyond_from,
            "lengths": lengths,
        }
        tensors = {"context": torch.from_numpy(np.concatenate(session.context))}
        if (following := session.following) is not None:
            tensors["plausibility"] = torch.from_numpy(following.plausibility)
            note["following"] = {"particle": following.particle, "since": following.since, "hope": following.hope}
        if (places := session.places) is not None:
            tensors |= {"seen": torch.from_numpy(places.seen), "aimed": torch.from_numpy(places.aimed)}
        save_checkpoint(new / f"session-{index}.safetensors", modules={}, tensors=tensors, note=note)
        if session.learner is not None:
            session.learner.save(new / f"learner-{index}.safetensors")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_sessions(folder: Path, protocol: TargetProtocol, tasks: Sequence[Any], seeds: Sequence[int]) -> list[TargetSession]:
    """The sessions of these tasks and seeds, as they were saved, or new ones where nothing is saved."""
    sessions = protocol.begin(tasks, seeds)
    old = folder.with_suffix(".old")
    if not folder.exists() and old.exists():  # interrupted between the two renames
        os.rename(old, folder)
    for index, session in enumerate(sessions if folder.exists() else []):
        tensors, note = load_checkpoint(folder / f"session-{index}.safetensors", modules={})
        session.context = np.split(tensors["context"].numpy(), np.cumsum(note["lengths"])[:-1])
        session.returns, session.successes, session.steps = note["returns"], note["successes"], note["steps"]
        session.deterministic_returns = {int(k): v for k, v in note["deterministic_returns"].items()}
        session.rewarded, session.beyond_from = note["rewarded"], note.get("beyond_from", -1)
        if "following" in note:
            session.following = Following(tensors["plausibility"].numpy(), **note["following"])
        if "seen" in tensors:
            seen, aimed = tensors["seen"].numpy(), tensors["aimed"].numpy()
            session.places = Places(seen, aimed, seen[:0], seen[:0])  # a route is found anew from the context
        learner = folder / f"learner-{index}.safetensors"
        if learner.exists():
            assert protocol.new_learner is not None
            session.learner = protocol.new_learner(np.zeros(protocol.spec.task_embedding_dim, np.float32), session.seed)
            session.learner.restore(learner)
            session.policy = session.learner.networks.policy
    return sessions
