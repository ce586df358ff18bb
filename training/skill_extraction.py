"""Stage 1: skills from reward-free data (SPiRL, Pertsch et al. 2020, equation 1; closed-loop decoder)."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.checkpoint import generator_states, load_checkpoint, save_checkpoint, set_generators
from training.config import SkillConfig, TrainingConfig
from training.contract.context import Floats
from training.contract.errors import ConfigError
from training.data import Episode
from training.networks.blocks import kl_divergence, kl_to_standard
from training.networks.skill_model import SkillModel
from training.run_log import RunLog

REPORT_STEPS = 200
CHECKPOINT_STEPS = 2000
CPU_INFO = Path("/proc/cpuinfo")


class SkillWindows:
    """All windows of ``H`` steps of a set of episodes, sampled uniformly or, where ``weights`` [episodes] are given, by their episode's.

    They are kept, and drawn, on ``device``, where they are learned from.
    """

    def __init__(self, episodes: Sequence[Episode], horizon: int, weights: Floats | None = None, device: str = "cpu") -> None:
        usable = [episode for episode in episodes if len(episode.actions) >= horizon]
        if not usable:
            raise ConfigError(
                f"no episode has the {horizon} steps of a skill; the longest has {max((len(e.actions) for e in episodes), default=0)}"
            )
        self.horizon, self.device = horizon, device
        self.states = torch.from_numpy(np.concatenate([e.observations[:-1] for e in usable])).to(device)  # [steps, S]
        self.actions = torch.from_numpy(np.concatenate([e.actions for e in usable])).to(device)  # [steps, A]
        lengths = [len(episode.actions) for episode in usable]
        begins = np.cumsum([0, *lengths[:-1]])
        starts = [begin + np.arange(length - horizon + 1) for begin, length in zip(begins, lengths, strict=True)]
        self.starts = torch.from_numpy(np.concatenate(starts)).to(device)
        self._cumulative: Tensor | None = None
        if weights is not None:
            kept = [weight for episode, weight in zip(episodes, weights, strict=True) if len(episode.actions) >= horizon]
            each = np.repeat(np.asarray(kept, np.float64), [len(windows) for windows in starts])
            self._cumulative = torch.from_numpy(np.cumsum(each)).to(device)

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States [batch, H, S] and actions [batch, H, A]."""
        rows = self.starts[self._draw(batch, generator)][:, None] + torch.arange(self.horizon, device=self.device)
        return self.states[rows], self.actions[rows]

    def _draw(self, batch: int, generator: torch.Generator) -> Tensor:
        if self._cumulative is None:
            return torch.randint(len(self.starts), (batch,), generator=generator, device=self.device)
        uniform = torch.rand(batch, generator=generator, dtype=torch.float64, device=self.device)
        return torch.searchsorted(self._cumulative, uniform * self._cumulative[-1], right=True).clamp_max(len(self.starts) - 1)


class SkillLearner:
    """One optimiser over encoder, decoder and prior; the prior sees detached skills, so it does not shape them."""

    def __init__(self, model: SkillModel, config: SkillConfig, device: str = "cpu") -> None:
        self.model, self.config, self.device = model.to(device), config, device
        self.optimizer = torch.optim.Adam(model.parameters(), config.learning_rate)

    def update(self, states: Tensor, actions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """One step on windows [B, H, S] and [B, H, A]. Returns detached scalar metrics. All is on the learner's device."""
        config, model = self.config, self.model
        order = torch.rand(states.shape[:2], generator=generator, device=self.device).argsort(1)
        steps = order[:, : config.decoded_steps]  # [B, K], no step twice
        rows = torch.arange(len(states), device=self.device)[:, None]

        with torch.autocast(self.device, torch.bfloat16, enabled=config.precision == "bfloat16"):
            mean, std = (each.float() for each in model.encoder(states, actions))  # [B, Z]
            skill = mean + std * torch.randn(mean.shape, device=self.device)
            decoded = model.decoder(states[rows, steps], skill[:, None].expand(-1, config.decoded_steps, -1)).float()
            prior = [each.float() for each in model.prior(states[:, 0])]
        # SPiRL equation 1, with the Gaussian likelihood of fixed variance as a mean squared error.
        reconstruction = functional.mse_loss(decoded, actions[rows, steps])
        regularisation = kl_to_standard(mean, std).mean()
        # The prior is fitted by KL(q || p), whose gradient in p is that of the likelihood of q's samples.
        prior_fit = kl_divergence(mean.detach(), std.detach(), *prior).mean()
        loss = reconstruction + config.beta * regularisation + prior_fit

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"action_mse": reconstruction.detach(), "kl_standard": regularisation.detach(), "kl_prior": prior_fit.detach()}


def build_skill_model(
    config: TrainingConfig, windows: SkillWindows, action_low: NDArray[np.float32], action_high: NDArray[np.float32]
) -> SkillModel:
    """A fresh skill model with the data's normaliser."""
    return SkillModel(
        config.features,
        config.skills,
        state_mean=windows.states.mean(0).cpu(),
        state_std=windows.states.std(0).clamp_min(config.features.smallest_std).cpu(),
        action_low=torch.from_numpy(action_low),
        action_high=torch.from_numpy(action_high),
    )


@torch.no_grad()
def skill_share(model: SkillModel, windows: SkillWindows, generator: torch.Generator, states: int = 2000, draws: int = 16) -> float:
    """Share of the variance of what is decoded that is the skill's: over skills of the prior in one state, of that over all states.

    A decoder that sees where the robot is can do without the skill where data are clean, and a policy has then nothing to choose.
    """
    state = windows.sample(states, generator)[0][:, 0].cpu()  # [B, S]
    mean, std = model.prior(state)
    skill = mean[:, None] + std[:, None] * torch.randn(states, draws, mean.shape[-1], generator=generator)
    decoded = model.decoder(state[:, None].expand(-1, draws, -1), skill)  # [B, draws, A]
    varied = float(decoded.flatten(0, 1).var(0).mean())
    return float(decoded.var(1).mean()) / varied if varied else 0.0


def extract_skills(
    config: TrainingConfig,
    episodes: Sequence[Episode],
    action_low: NDArray[np.float32],
    action_high: NDArray[np.float32],
    run_dir: Path,
    device: str = "cpu",
    weights: Floats | None = None,
) -> SkillModel:
    """Train (or go on training) the skill model; checkpoints and metrics in ``run_dir``. Returns it on the CPU, in evaluation mode.

    ``weights`` [episodes]: how often their windows are learned from, relative to each other; None: all alike.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    windows = SkillWindows(episodes, config.skills.horizon, weights, device)
    learner = SkillLearner(build_skill_model(config, windows, action_low, action_high), config.skills, device)
    checkpoint = run_dir / "skills.safetensors"
    done = 0
    if checkpoint.exists():
        states, note = load_checkpoint(checkpoint, modules={"model": learner.model}, optimizers={"adam": learner.optimizer})
        done = int(note["steps"])
        if states:
            set_generators({"windows": generator}, states, device)
        else:  # a checkpoint of an earlier version has none
            generator.manual_seed(config.seed + done)
    total = config.skills.steps
    with RunLog(run_dir, "skills", total, resumed_at=done) as log:
        for step, metrics in _updates(learner, windows, generator, done, total):
            if step % REPORT_STEPS == 0 or step == total:
                log.report(step, {name: float(value) for name, value in metrics.items()})
            if step % CHECKPOINT_STEPS == 0 or step == total:
                save_checkpoint(
                    checkpoint,
                    modules={"model": learner.model},
                    optimizers={"adam": learner.optimizer},
                    tensors=generator_states({"windows": generator}, device),
                    note={"steps": step},
                )
    return learner.model.cpu().eval()


def _updates(
    learner: SkillLearner, windows: SkillWindows, generator: torch.Generator, done: int, total: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    for step in range(done + 1, total + 1):
        for group in learner.optimizer.param_groups:  # a cosine to zero, so that the last steps settle
            group["lr"] = learner.config.learning_rate * 0.5 * (1 + np.cos(np.pi * (step - 1) / total))
        yield step, learner.update(*windows.sample(learner.config.batch, generator), generator)


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has products in bfloat16, as far as Linux tells; True where it tells nothing."""
    try:
        flags = re.findall(r"^(?:flags|Features)\s*: (.*)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return True
    return not flags or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags[0].split())
