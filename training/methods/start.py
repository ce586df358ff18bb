"""What all methods start from: one set of skills, and Skillet's own meta-training where it has been done already."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from training.belief import TrainedBelief
from training.config import FeatureConfig, NetworkConfig, SkillConfig, TrainingConfig
from training.contract.belief import Belief
from training.contract.bundle import Bundle
from training.contract.context import Floats
from training.contract.errors import ConfigError
from training.contract.novelty import Novelty
from training.contract.spec import LEARNER_WEIGHTS, REWARD_DECODER, SKILL_DECODER, SKILL_DYNAMICS, TASK_ENCODER
from training.finetuning import LearnerNetworks
from training.meta_learner import MetaNetworks
from training.networks.skill_model import SkillModel
from training.run import Run


@dataclass
class Start:
    """The skills of every method with skills; and, for one meta-training seed, Skillet's networks and KL coefficient."""

    skills: SkillModel
    origin: str
    meta_seed: int | None = None
    networks: MetaNetworks | None = None
    coefficient: float = 0.0
    networks_digest: str = ""
    """Of Skillet's networks, the belief's among them, where they come from a run; a bundle's digest is in ``origin``."""
    belief: Belief | None = None
    has_skill_encoder: bool = True
    """Whether offline episodes can be put into skills; a bundle has no encoder of skills."""


def start_from_run(run: Run) -> Start:
    """The skills that a run's folder holds, and its meta-training where that is complete."""
    start = Start(run.skills, f"run {_digest(run.need('skills'))}")
    if (run.dir / "meta.safetensors").exists():
        trainer = run.trainer()
        if trainer.load_networks() >= run.config.meta.updates:
            start.meta_seed, start.networks, start.networks_digest = run.config.seed, trainer.networks, _digest(run.need("meta"))
            start.coefficient = float(trainer.learner.policy_posterior())
            if run.config.belief.particles:
                start.belief = TrainedBelief.load(run.need("belief"), run.config, trainer.networks).belief()
                start.networks_digest += _digest(run.need("belief"))
    return start


def start_from_bundle(bundle: Bundle, config: TrainingConfig) -> Start:
    """The skills and networks of a bundle as they are served: the decoder and the task encoder are its ONNX graphs.

    Raises ConfigError when the bundle's networks are not those of the configuration.
    """
    sizes = bundle.manifest.networks
    kinds = {"features": FeatureConfig, "skills": SkillConfig, "networks": NetworkConfig}
    different = [name for name, kind in kinds.items() if kind.model_validate(sizes[name]) != getattr(config, name)]
    if different:
        raise ConfigError(f"the bundle {bundle.path} was made with another {', '.join(different)} than this configuration has")
    learner = LearnerNetworks.from_bundle(bundle)
    low, high = (torch.tensor(limit) for limit in (bundle.manifest.spec.action.low, bundle.manifest.spec.action.high))
    features = learner.policy.skill_prior.features
    skills = SkillModel(config.features, config.skills, state_mean=features.mean, state_std=features.std, action_low=low, action_high=high)
    skills.prior.load_state_dict(learner.policy.skill_prior.state_dict())
    skills.decoder = OnnxGraph(bundle.read(SKILL_DECODER))
    for weight in skills.encoder.parameters():  # which a bundle lacks: the same each time, as checkpoints tell skills by their weights
        nn.init.zeros_(weight)
    skills.eval()
    networks = MetaNetworks.fresh(skills, learner.layout, config.networks)
    weights = load_tensors(bundle.read(LEARNER_WEIGHTS))
    for name in ("policy", "critic", "target_critic"):
        getattr(networks, name).load_state_dict({k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")})
    networks.encoder = OnnxGraph(bundle.read(TASK_ENCODER))
    seed = int(bundle.manifest.provenance.seed)
    origin, coefficient = f"bundle {bundle.manifest.digest[:12]}", float(learner.coefficient())
    return Start(skills, origin, seed, networks, coefficient, belief=_belief(bundle), has_skill_encoder=False)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _belief(bundle: Bundle) -> Belief | None:
    if (particles := bundle.manifest.particles) is None:
        return None
    decoder = OnnxGraph(bundle.read(REWARD_DECODER))

    def probability(states: Floats, embeddings: Floats) -> Floats:
        answer: Floats = decoder(torch.from_numpy(states), torch.from_numpy(embeddings)).numpy()
        return answer

    return Belief(np.array(particles, np.float32), probability, _novelty(bundle))


def _novelty(bundle: Bundle) -> Novelty | None:
    if (places := bundle.manifest.places) is None:
        return None
    dynamics = OnnxGraph(bundle.read(SKILL_DYNAMICS))

    def imagine(states: Floats, noise: Floats) -> tuple[Floats, Floats]:
        skills, after = dynamics(torch.from_numpy(states), torch.from_numpy(noise))
        return skills.numpy(), after.numpy()

    return Novelty(np.array(places, np.float32), imagine)


class OnnxGraph(nn.Module):
    """A bundle's graph as a module, for acting only: it has no gradients."""

    def __init__(self, model: bytes) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The graph's outputs for its inputs, in their order."""
        feed = {name: value.detach().numpy() for name, value in zip(self._names, inputs, strict=True)}
        outputs = tuple(torch.from_numpy(output) for output in self._session.run(None, feed))
        return outputs[0] if len(outputs) == 1 else outputs
