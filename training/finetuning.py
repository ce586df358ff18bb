"""Stage 3: learning a target task (SiMPL, section 4.3). The same code runs offline and in the service's learner.

It starts from the meta-trained policy, critics and KL coefficient, keeps the conditioning episodes in its replay, and begins updating at
once. The task embedding is no part of what is learned; whoever holds the episodes infers it anew where `Finetuner.add_episode` asks for it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import FeatureConfig, FinetuningConfig, NetworkConfig, SkillConfig, TrainingConfig
from training.contract.bundle import Bundle
from training.contract.context import ContextLayout, Floats
from training.contract.errors import BundleCorrupt
from training.contract.spec import LEARNER_WEIGHTS
from training.held_back import HeldBack, HeldEpisode
from training.networks.blocks import StateFeatures, kl_divergence
from training.networks.critic import SkillCritic
from training.networks.meta_policy import MetaPolicy
from training.networks.skill_model import SkillPrior
from training.prior_regularised_sac import Coefficients, actor_terms, critic_loss, critic_target, polyak, step
from training.replay import Batch, TaskReplay

if TYPE_CHECKING:
    from training.meta_learner import MetaNetworks


class LearnerNetworks(torch.nn.Module):
    """What fine-tuning trains: policy (on its frozen skill prior), critics and KL coefficient."""

    def __init__(
        self, layout: ContextLayout, features: FeatureConfig, skills: SkillConfig, networks: NetworkConfig, finetuning: FinetuningConfig
    ) -> None:
        super().__init__()
        self.layout = layout
        state_features = StateFeatures(layout.state_dim, features)
        self.policy = MetaPolicy(SkillPrior(state_features, skills), layout.skill_dim, networks)
        self.critic = SkillCritic(state_features, layout.skill_dim, networks)
        self.target_critic = SkillCritic(state_features, layout.skill_dim, networks).requires_grad_(False)
        self.coefficient = Coefficients(1e-3, finetuning.kl_target, may_fall=finetuning.coefficient_may_fall)

    @classmethod
    def from_meta(cls, networks: "MetaNetworks", config: TrainingConfig, coefficient: float) -> "LearnerNetworks":
        """Copies of meta-trained networks, with the KL coefficient to begin from."""
        layout = ContextLayout(len(networks.policy.skill_prior.features.mean), config.skills.skill_dim)
        learner = cls(layout, config.features, config.skills, config.networks, config.finetuning)
        learner.load_state_dict(load_tensors(cls.pack(networks.policy, networks.critic, networks.target_critic, coefficient)))
        return learner

    @staticmethod
    def pack(policy: MetaPolicy, critic: SkillCritic, target_critic: SkillCritic, coefficient: float) -> bytes:
        """The content of ``learner.safetensors``."""
        flat: dict[str, Tensor] = {}
        for name, module in {"policy": policy, "critic": critic, "target_critic": target_critic}.items():
            flat |= {f"{name}.{key}": value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}
        flat["coefficient.raw"] = Coefficients(coefficient, 1.0).raw.detach().clone()
        return save_tensors(flat)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "LearnerNetworks":
        """Networks as the bundle's meta-training left them."""
        sizes, spec = bundle.manifest.networks, bundle.manifest.spec
        networks = cls(
            ContextLayout(spec.state_dim, spec.skill_dim),
            FeatureConfig.model_validate(sizes["features"]),
            SkillConfig.model_validate(sizes["skills"]),
            NetworkConfig.model_validate(sizes["networks"]),
            FinetuningConfig.model_validate(bundle.manifest.finetuning),
        )
        try:
            networks.load_state_dict(load_tensors(bundle.read(LEARNER_WEIGHTS)))
        except (SafetensorError, RuntimeError) as error:
            raise BundleCorrupt(f"{LEARNER_WEIGHTS} in {bundle.path} does not hold the learner's networks: {error}") from error
        return networks


def finetuning_step(
    config: FinetuningConfig,
    networks: LearnerNetworks,
    optimizers: Mapping[str, torch.optim.Optimizer],
    batch: Batch,
    embedding: Tensor,
    noise: Tensor,
) -> dict[str, Tensor]:
    """One step of critics, actor and KL coefficient. Returns detached scalar metrics.

    ``batch`` [B, ...], ``embedding`` [B, E] and ``noise`` [2, B, Z] belong to one task; or, where the networks are those of ``S`` tasks
    side by side (`training.stacked_finetuning`), [S, B, ...], [S, B, E] and [2, S, B, Z].
    """
    alpha = networks.coefficient()  # [1] or [S, 1]
    tasks = alpha.numel()  # means over tasks become sums, so that no task's gradient depends on the others
    target = critic_target(
        batch, embedding, networks.policy, networks.target_critic, alpha,
        discount=config.discount, kl_clip=config.kl_clip, return_bound=config.return_bound, noise=noise[0],
    )  # fmt: skip
    judged = critic_loss(batch, embedding, networks.critic, target)
    step(optimizers["critic"], judged * tasks)

    improvement, kl, imitation = actor_terms(batch, embedding, networks.policy, networks.critic, noise[1])
    acted = (improvement + alpha * kl + config.imitation * imitation).mean()
    step(optimizers["actor"], acted * tasks)

    step(optimizers["dual"], networks.coefficient.loss(kl.mean(-1, keepdim=True)))
    polyak(networks.critic, networks.target_critic, config.polyak)
    return {
        "critic_loss": judged.detach(),
        "actor_loss": acted.detach(),
        "kl": kl.detach().mean(),
        "alpha": alpha.mean(),
        "q_mean": -improvement.detach().mean(),
    }


class Finetuner:
    """Fine-tunes one task's policy on that task's own replay.

    All randomness comes from the seed and is part of the saved state: a learner that is loaded goes on exactly as the one that was saved.
    """

    def __init__(self, networks: LearnerNetworks, config: FinetuningConfig, task_embedding: Floats, seed: int) -> None:
        self.networks, self.config = networks, config
        self.task_embedding = torch.as_tensor(task_embedding, dtype=torch.float32)
        self.replay = TaskReplay(1, config.buffer, networks.layout, config.discount, rare_best=config.detours)
        self.held_back = HeldBack()
        self.episodes = self.updates = self.owed = 0
        self.best_return = -math.inf
        self.critic_optimizer = torch.optim.Adam(networks.critic.parameters(), config.learning_rate)
        self.actor_optimizer = torch.optim.Adam(networks.policy.net.parameters(), config.learning_rate)
        self.dual_optimizer = torch.optim.Adam([networks.coefficient.raw], config.coefficient_learning_rate)
        self.generator = torch.Generator().manual_seed(seed)
        self._first_policy = {name: value.detach().clone() for name, value in networks.policy.residual_parameters().items()}

    @classmethod
    def from_bundle(cls, bundle: Bundle, task_embedding: Floats, seed: int) -> "Finetuner":
        """A learner at the bundle's starting point for one task embedding, float32 [E]."""
        config = FinetuningConfig.model_validate(bundle.manifest.finetuning)
        return cls(LearnerNetworks.from_bundle(bundle), config, task_embedding, seed)

    def add_episode(self, rows: Floats, log_chosen: Floats | None = None) -> bool:
        """Add one complete episode's skill transitions [n, D]. Returns whether the task is to be inferred anew from all episodes.

        It is where `FinetuningConfig.infer_again` asks for it and the episode earned more than any before it: it shows of the task what the
        embedding that is acted with cannot say.

        ``log_chosen`` [k]: how likely its first k skills were under the policy that chose them. Some of the episodes that have it are held
        back, to judge by: `training.held_back`. The first that was rewarded never is, for it may stay the only one for long; nor, where the
        task is inferred anew, one that earned more than any before it.
        """
        rewards = rows[:, self.networks.layout.reward]
        is_best = float(rewards.sum()) > self.best_return
        self.best_return = max(self.best_return, float(rewards.sum()))
        is_first = not len(self.replay.rewarded_rows(0))
        learned, wanted = [rows], rewards.any() and (is_first or (is_best and self.config.infer_again))
        if log_chosen is not None and not wanted:
            learned = self.held_back.offer(HeldEpisode(rows, log_chosen))
        for each in learned:
            self.replay.add(0, each)
        self.episodes += 1
        if self.updates == 0:
            self.owed = self.config.warm_start_updates
        else:
            self.owed += self.config.updates_per_episode
        return is_best and self.config.infer_again

    def updates_due(self) -> int:
        """Gradient steps still owed: a warm start for the episodes that are there at first, then so many for each."""
        return self.owed

    def update(self, count: int) -> dict[str, float]:
        """Make ``count`` gradient steps. Returns their mean losses and diagnostics (KL in nats)."""
        if not len(self.replay):
            raise RuntimeError("no episode to learn from: call add_episode first")
        metrics = [self._step() for _ in range(count)]
        self.made(count)
        return {name: float(torch.stack([m[name] for m in metrics]).mean()) for name in metrics[0]} if metrics else {}

    def made(self, count: int) -> None:
        """Note that so many gradient steps have been made."""
        self.updates += count
        self.owed = max(0, self.owed - count)

    def draw(self) -> tuple[Batch, Tensor]:
        """A batch [B, ...] from the replay for one gradient step, and its noise [2, B, Z]: for the target's skills and for the actor's."""
        config = self.config
        batch = self.replay.sample([0], config.batch, config.success_share, self.generator).flat()
        shape = (config.batch, self.networks.layout.skill_dim)
        return batch, torch.stack([torch.randn(shape, generator=self.generator) for _ in range(2)])

    def _step(self) -> dict[str, Tensor]:
        batch, noise = self.draw()
        return finetuning_step(
            self.config, self.networks, self.optimizers(), batch, self.task_embedding.expand(self.config.batch, -1), noise
        )

    def policy_weights(self) -> dict[str, Floats]:
        """The fine-tuned part of the policy, by the names of the initializers in ``meta_policy.onnx``."""
        return {name: value.detach().numpy().copy() for name, value in self.networks.policy.residual_parameters().items()}

    def begin_again(self, weights: Mapping[str, Floats] | None, task_embedding: Floats) -> None:
        """Go back to an earlier policy, its weights as `policy_weights` gives them, and the task embedding [E] that it acts with.

        None: the policy that fine-tuning began with.

        What was learned of the task stays: the replay, the critics and the KL coefficient. Gradient steps of an episode are owed at least.
        """
        with torch.no_grad():
            for name, parameter in self.networks.policy.residual_parameters().items():
                parameter.copy_(self._first_policy[name] if weights is None else torch.from_numpy(weights[name]))
        self.task_embedding = torch.from_numpy(task_embedding.copy())
        self.actor_optimizer = torch.optim.Adam(self.networks.policy.net.parameters(), self.config.learning_rate)
        self.owed = max(self.owed, self.config.updates_per_episode)

    @torch.no_grad()
    def policy_kl(self) -> float:
        """Mean KL(pi || skill prior) over the newest replay states, nats."""
        newest = torch.arange(int(self.replay.added[0]))[-min(self.replay.size(0), 2048) :] % self.replay.capacity
        states = self.replay.rows[0, newest, self.networks.layout.state]
        return float(kl_divergence(*self.networks.policy(states, self.task_embedding.expand(len(states), -1))).mean())

    def save(self, path: Path) -> None:
        """Write everything that going on needs, as safetensors."""
        size = self.replay.size(0)
        tensors = {
            "task_embedding": self.task_embedding,
            "random_state": self.generator.get_state(),
            "rows": self.replay.rows[0, :size],
            "discounted_return": self.replay.discounted_return[0, :size],
            "episode_return": self.replay.episode_return[0, :size],
        }
        for index, held in enumerate(self.held_back.episodes):
            tensors |= {f"held_rows{index}": torch.from_numpy(held.rows), f"held_chosen{index}": torch.from_numpy(held.log_chosen)}
        note: dict[str, Any] = {"episodes": self.episodes, "updates": self.updates, "owed": self.owed, "added": int(self.replay.added[0])}
        note["offered"] = self.held_back.offered
        note["best_return"] = self.best_return if math.isfinite(self.best_return) else None
        save_checkpoint(path, modules={"networks": self.networks}, optimizers=self.optimizers(), tensors=tensors, note=note)

    @classmethod
    def load(cls, bundle: Bundle, path: Path) -> "Finetuner":
        """The learner that was saved, in the state that it was saved in."""
        learner = cls.from_bundle(bundle, torch.zeros(bundle.manifest.spec.task_embedding_dim).numpy(), 0)
        learner.restore(path)
        return learner

    def restore(self, path: Path) -> None:
        """Go back to a state that a learner of the same sizes saved."""
        tensors, note = load_checkpoint(path, modules={"networks": self.networks}, optimizers=self.optimizers())
        self.task_embedding = tensors["task_embedding"]
        self.generator.set_state(tensors["random_state"])
        self.episodes, self.updates, self.owed = note["episodes"], note["updates"], note["owed"]
        replay, size = self.replay, len(tensors["rows"])
        replay.rows[0, :size] = tensors["rows"]
        replay.discounted_return[0, :size] = tensors["discounted_return"]
        replay.episode_return[0, :size] = tensors["episode_return"]
        replay.added[0] = note["added"]
        # A checkpoint of an earlier release has neither.
        self.held_back = _held_back(tensors, note.get("offered", 0))
        best = note.get("best_return", max(tensors["episode_return"].tolist(), default=None))
        self.best_return = -math.inf if best is None else best

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name, for gradient steps and checkpoints."""
        return {"critic": self.critic_optimizer, "actor": self.actor_optimizer, "dual": self.dual_optimizer}


def _held_back(tensors: Mapping[str, Tensor], offered: int) -> HeldBack:
    count = sum(name.startswith("held_rows") for name in tensors)
    episodes = [HeldEpisode(tensors[f"held_rows{i}"].numpy(), tensors[f"held_chosen{i}"].numpy()) for i in range(count)]
    return HeldBack(episodes, offered)
