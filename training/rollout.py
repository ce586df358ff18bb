"""Episodes of skills in a vectorised simulator: the meta-policy picks a skill every H steps, the decoder acts in between."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.contract.context import ContextLayout, Floats
from training.networks.meta_policy import MetaPolicy
from training.networks.skill_model import SkillDecoder
from training.replay import SkillEpisode


class TaskSimulator(Protocol):
    """``B`` episodes side by side, each with its own task."""

    episode_steps: int

    def reset(self, tasks: Sequence[Any], rng: np.random.Generator) -> Floats:
        """Begin one episode for each task. Returns states [B, S]."""

    def step(self, actions: Floats, active: NDArray[np.intp]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Apply actions [K, A] to the episodes ``active`` [K]. Returns their states [K, S], rewards [K] and terminations [K]."""

    def judge(self, path: Floats, tasks: Sequence[Any]) -> tuple[Floats, NDArray[np.intp], NDArray[np.bool_]]:
        """What a path [n + 1, S] would have earned in each task: rewards [T, n], steps until its end [T], whether it terminates [T]."""


@dataclass(frozen=True)
class Choice:
    """The embeddings [B, E] of the next skills, and which of them [B] `Acting.base` chooses in the place of an episode's own policy.

    ``planned``: skills [Z] by the number of their episode, that no policy chooses.
    """

    embeddings: Tensor
    by_base: NDArray[np.bool_] | None = None
    planned: Mapping[int, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Acting:
    """How each episode acts: its task embedding [B, E], and whether by the plain skill prior [B].

    ``temperature``: what the policy's standard deviations are multiplied by; the skill prior's are not.
    ``redraw``, where given, is asked at every skill choice, with the skill's number, all states [B, S], which episodes still go on [K] and
    what all have earned so far [B].
    """

    embeddings: Tensor
    plain_prior: Tensor
    deterministic: bool = False
    temperature: float = 1.0
    redraw: Callable[[int, Floats, NDArray[np.intp], Floats], Choice] | None = None
    base: MetaPolicy | None = None

    @classmethod
    def by_policy(cls, embeddings: Tensor, *, deterministic: bool = False) -> "Acting":
        """Every episode by the meta-policy."""
        return cls(embeddings, torch.zeros(len(embeddings), dtype=torch.bool), deterministic)

    @classmethod
    def by_prior(cls, count: int, embedding_dim: int) -> "Acting":
        """Every episode by the skill prior (what skills do without a task)."""
        return cls(torch.zeros(count, embedding_dim), torch.ones(count, dtype=torch.bool))


@dataclass
class _Recorder:
    rows: list[list[Floats]]
    steps: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    paths: Floats | None


@torch.no_grad()
def rollout(
    simulator: TaskSimulator,
    tasks: Sequence[Any],
    policies: MetaPolicy | Sequence[MetaPolicy],
    decoder: SkillDecoder,
    acting: Acting,
    *,
    horizon: int,
    layout: ContextLayout,
    rng: np.random.Generator,
    paths: bool = False,
) -> tuple[list[SkillEpisode], list[Floats]]:
    """One episode of each task. ``policies`` is one for all, or one for each. Returns episodes, and the paths [n, S] if asked for."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    states = simulator.reset(tasks, rng)
    count = len(tasks)
    record = _Recorder([[] for _ in tasks], np.zeros(count, np.int64), np.zeros(count, bool), None)
    if paths:
        record.paths = np.zeros((count, simulator.episode_steps + 1, states.shape[1]), np.float32)
        record.paths[:, 0] = states
    active, earned = np.arange(count), np.zeros(count, np.float32)
    for began in range(0, simulator.episode_steps, horizon):
        before = states[active]
        choice = acting.redraw(began // horizon, states, active, earned) if acting.redraw else Choice(acting.embeddings)
        skills = _choose_skills(policies, torch.from_numpy(before), choice, acting, active, generator)
        rewards, alive, owner = np.zeros(len(active), np.float32), np.arange(len(active)), active
        for _ in range(min(horizon, simulator.episode_steps - began)):
            actions = decoder(torch.from_numpy(states[owner[alive]]), skills[alive]).numpy()
            after, reward, ended = simulator.step(actions, owner[alive])
            states[owner[alive]] = after
            rewards[alive] += reward
            record.steps[owner[alive]] += 1
            record.terminated[owner[alive]] |= ended
            if record.paths is not None:
                record.paths[owner[alive], record.steps[owner[alive]]] = after
            alive = alive[~ended]
            if not len(alive):
                break
        earned[owner] += rewards
        flags = record.terminated[owner].astype(np.float32)
        rows = np.concatenate([before, skills.numpy(), rewards[:, None], flags[:, None], states[owner]], 1).astype(np.float32)
        for index, row in zip(owner, rows, strict=True):
            record.rows[index].append(row)
        active = owner[~record.terminated[owner]]
        if not len(active):
            break
    episodes = []
    for index in range(count):
        stacked = np.stack(record.rows[index])
        episodes.append(
            SkillEpisode(stacked, int(record.steps[index]), float(stacked[:, layout.reward].sum()), bool(record.terminated[index]))
        )
    return episodes, [] if record.paths is None else [path[: steps + 1] for path, steps in zip(record.paths, record.steps, strict=True)]


def _choose_skills(
    policies: MetaPolicy | Sequence[MetaPolicy],
    states: Tensor,
    choice: Choice,
    acting: Acting,
    active: NDArray[np.intp],
    generator: torch.Generator,
) -> Tensor:
    index = torch.from_numpy(active)
    embeddings = choice.embeddings[index]
    plain = acting.plain_prior[index, None]
    if isinstance(policies, MetaPolicy):
        mean, std, prior_mean, prior_std = policies(states, embeddings)
    else:
        chosen_by = [acting.base if acting.base and choice.by_base is not None and choice.by_base[i] else policies[i] for i in active]
        answers = [policy(states[k : k + 1], embeddings[k : k + 1]) for k, policy in enumerate(chosen_by)]
        mean, std, prior_mean, prior_std = (torch.cat(parts) for parts in zip(*answers, strict=True))
    mean, std = torch.where(plain, prior_mean, mean), torch.where(plain, prior_std, acting.temperature * std)
    skills = mean if acting.deterministic else mean + std * torch.randn(mean.shape, generator=generator)
    for row, episode in enumerate(active):
        if episode in choice.planned:
            skills[row] = torch.from_numpy(choice.planned[episode])
    return skills
