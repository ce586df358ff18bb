"""The last check of a candidate: that it is no worse than the policy that serves, on episodes held back from it. Part of the learner."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from service.policies import MetaPolicy, Networks
from service.session_state import EpisodeRecord, Loaded
from service.versions import VersionStore
from training.contract.context import Floats
from training.contract.exploration import Phase
from training.finetuning import Finetuner
from training.held_back import Estimate, Evidence, HeldEpisode, Numbers, estimate_change
from training.replay import discounted_returns

_SAMPLES: Final = 8
_NOISE_SEED: Final = 0


def log_chosen(
    loaded: Loaded, record: EpisodeRecord, rows: Floats, context: Callable[[], Floats], networks: Networks, versions: VersionStore
) -> Floats | None:
    """Log densities [k] of an episode's skills under the version that chose them, from its rows [n, D]; ``context`` reads all rows before.

    k < n where the episode then explored beyond what the session knew. None when it is not known, or nothing was drawn: the episode
    explored or was to take a detour, more than one version acted in it, weights are gone, rows may be another skill's, or the session
    takes the mean skill.
    """
    if record.phase is Phase.EXPLORING or loaded.session.deterministic or len(record.versions_used) != 1:
        return None
    policy = versions.policy(loaded.keys, record.versions_used[0], networks)
    if policy is None or (policy.task_embedding is None and record.first_row == 0) or (record.beyond_from >= 0 and record.skipped):
        return None
    embedding = networks.infer_task(context())[0] if policy.task_embedding is None else policy.task_embedding
    if record.beyond_from >= 0:  # a row is a skill, as none was skipped
        rows = rows[: record.beyond_from // networks.spec.skill_horizon]
    drawn = _gaussians(policy, np.repeat(embedding[None], len(rows), 0), rows, networks)
    return _log_normal(rows[:, networks.layout.skill], *drawn).astype(np.float32)


def judge(finetuner: Finetuner, serving: MetaPolicy, networks: Networks) -> Estimate | None:
    """The candidate, which is the learner's policy as it stands, against ``serving``; None while too few episodes are held back."""
    embedding = finetuner.task_embedding.numpy() if serving.task_embedding is None else serving.task_embedding
    return estimate_change([_evidence(finetuner, held, serving, embedding, networks) for held in finetuner.held_back.episodes])


def told(judged: Estimate) -> str:
    """The estimate in words."""
    chance = f"as low by chance with probability {judged.chance:.2g}"
    change = f"an episode's discounted return would change by {judged.change:.3g}, of which a loss of {judged.tolerated:.2g} is tolerated"
    return f"on {judged.episodes} held-back episodes: {change} ({chance})"


def no_worse(judged: Estimate | None) -> str:
    """What the reason of a version that passed adds."""
    return "" if judged is None else f"; no worse {told(judged)}"


def numbers(judged: Estimate | None) -> dict[str, float | None]:
    """The estimate as metrics of a version."""
    if judged is None:
        return {}
    change = judged.change if math.isfinite(judged.change) else None
    return {"held_back_episodes": float(judged.episodes), "held_back_change": change, "held_back_chance": judged.chance}


@torch.no_grad()
def _evidence(finetuner: Finetuner, held: HeldEpisode, serving: MetaPolicy, embedding: Floats, networks: Networks) -> Evidence:
    layout, trained, rows = networks.layout, finetuner.networks, held.judged
    states, skills = torch.from_numpy(rows[:, layout.state]), torch.from_numpy(rows[:, layout.skill])
    mean, std, *_ = trained.policy(states, finetuner.task_embedding.expand(len(states), -1))
    std = networks.skill_temperature * std
    served_mean, served_std = _gaussians(serving, np.repeat(embedding[None], len(states), 0), rows, networks)
    noise = np.random.default_rng(_NOISE_SEED).standard_normal((_SAMPLES, *mean.shape)).astype(np.float32)
    drawn, served = mean.numpy() + std.numpy() * noise, served_mean + served_std * noise  # [samples, n, Z]
    return Evidence(
        returned=discounted_returns(rows[:, layout.reward], finetuner.config.discount),
        log_chosen=held.log_chosen.astype(np.float64),
        log_candidate=_log_normal(skills.numpy(), mean.numpy(), std.numpy()),
        log_serving=_log_normal(skills.numpy(), served_mean, served_std),
        expected=_expected(finetuner, states, skills[None]),
        expected_candidate=_expected(finetuner, states, torch.from_numpy(drawn)),
        expected_serving=_expected(finetuner, states, torch.from_numpy(served)),
    )


def _expected(finetuner: Finetuner, states: torch.Tensor, skills: torch.Tensor) -> Numbers:
    """What each critic, and each one's slower average, expects of skills [samples, n, Z] in states [n, S], on average over the samples.

    [critics, n].
    """
    count, trained = len(skills), finetuner.networks
    inputs = states.repeat(count, 1), skills.flatten(0, 1), finetuner.task_embedding.expand(count * len(states), -1)
    values = torch.cat([critic(*inputs) for critic in (trained.critic, trained.target_critic)])
    return np.asarray(values.reshape(len(values), count, -1).mean(1).numpy(), np.float64)


def _gaussians(policy: MetaPolicy, embeddings: Floats, rows: Floats, networks: Networks) -> tuple[Floats, Floats]:
    """Means and standard deviations [n, Z] of what a policy draws under embeddings [n, E] in the states of rows [n, D]."""
    mean, std, *_ = policy.graph.run(rows[:, networks.layout.state], embeddings)
    return mean, np.float32(policy.temperature) * std


def _log_normal(values: Floats, mean: Floats, std: Floats) -> Numbers:
    """Log density of a diagonal Gaussian, [n, Z] each -> [n]."""
    value, loc, scale = (torch.from_numpy(array).double() for array in (values, mean, std))
    density: torch.Tensor = torch.distributions.Normal(loc, scale, validate_args=False).log_prob(value)  # type: ignore[no-untyped-call]
    return np.asarray(density.sum(-1).numpy(), np.float64)
