"""What sessions explore by novelty with (`training.contract.novelty`): a model of where skills lead, and which states are one place.

Both come from episodes of the training tasks; the networks of meta-training stay as they are.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.config import BeliefConfig
from training.contract.context import ContextLayout, Floats
from training.contract.errors import ConfigError
from training.networks.skill_dynamics import SkillDynamics
from training.prior_regularised_sac import step
from training.run_log import RunLog

APART = 1.5
"""A place reaches as far as this many times the usual distance between two states that one task rewards."""

FAINT = 0.05
"""Directions of the state space that tell tasks apart by less than this share of what the best direction does are left out."""


def fit_skill_dynamics(
    dynamics: SkillDynamics, rows: Floats, layout: ContextLayout, config: BeliefConfig, run_dir: Path, seed: int
) -> None:
    """Train on skill transitions ``rows`` [n, D], one in twenty of which are held out and only measured."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    state, skill, after = (torch.from_numpy(rows[:, part])[order] for part in (layout.state, layout.skill, layout.next_state))
    held = max(1, len(rows) // 20)
    dynamics.change_std.copy_((after - state).std(0).clamp_min(1e-6))
    optimizer = torch.optim.Adam(dynamics.net.parameters(), config.learning_rate)
    total = config.dynamics_updates
    with RunLog(run_dir, "dynamics", total, "updates") as log:
        for update in range(1, total + 1):
            for group in optimizer.param_groups:  # a cosine to zero, so that the last updates settle
                group["lr"] = config.learning_rate * 0.5 * (1 + np.cos(np.pi * (update - 1) / total))
            batch = held + torch.randint(len(rows) - held, (config.batch,), generator=generator)
            loss = _error(dynamics, state[batch], skill[batch], after[batch])
            step(optimizer, loss)
            if update % 200 == 0 or update == total:
                with torch.no_grad():
                    held_out = _error(dynamics, state[:held], skill[:held], after[:held])
                log.report(update, {"loss": float(loss.detach()), "held_out": float(held_out)})


def _error(dynamics: SkillDynamics, state: Tensor, skill: Tensor, after: Tensor) -> Tensor:
    """Mean squared error, as a share of the variance of the change."""
    return functional.mse_loss((dynamics.after(state, skill) - state) / dynamics.change_std, (after - state) / dynamics.change_std)


def place_projection(states: Floats, rewarded: Sequence[Floats]) -> Floats:
    """Coordinates [R, S] in which states within 1 of each other are one place, as far as rewards tell.

    A linear discriminant analysis (Fisher 1936) of the states in which each task was rewarded, ``rewarded`` [m, S] each, against all
    ``states`` [n, S]: what varies among the states that one task rewards as it does anywhere (in a maze, the velocity) does not count.
    Raises ConfigError when too few rewards were seen.
    """
    std = states.std(0).clip(1e-6)
    groups = [(each - each.mean(0)) / std for each in rewarded if len(each) > 1]
    if not groups:
        raise ConfigError(
            "which states are one place is learned from rewards, and no training task was rewarded twice: raise belief.episodes, train the "
            "meta-policy for longer, or set belief.dynamics_updates=0"
        )
    within = sum(group.T @ group for group in groups) / sum(len(group) - 1 for group in groups)
    overall = np.cov(states / std, rowvar=False)
    floor = 1e-4 * np.eye(len(std))  # entries that do not vary at all
    tells = np.linalg.inv(within + floor) - np.linalg.inv(overall + floor)
    strength, directions = np.linalg.eigh(tells)
    kept = strength > FAINT * strength.max()
    if strength.max() <= 0:
        raise ConfigError("the states that a training task rewards vary as all states do: they do not tell tasks apart")
    projection = (directions[:, kept] * np.sqrt(strength[kept])).T / std
    # Two states of one task: each coordinate's difference has twice the variance that it has within a task.
    usual = np.sqrt(2 * np.trace(projection @ (np.diag(std) @ (within + floor) @ np.diag(std)) @ projection.T))
    coordinates: Floats = (projection / (APART * usual)).astype(np.float32)
    return coordinates
