"""The networks that a method's sessions start from, with what making them cost."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from training.belief import BeliefTrainer, TrainedBelief
from training.config import TrainingConfig
from training.contract.belief import Belief
from training.contract.context import ContextLayout
from training.contract.errors import ConfigError
from training.meta_learner import MetaNetworks
from training.methods.catalogue import SKILLET
from training.methods.method import Method
from training.methods.setting import Setting


@dataclass(frozen=True)
class StartingPoint:
    """Networks, KL coefficient, and the cost of their meta-training (zeros where there was none, None where it is not known).

    ``belief``: over tasks, of a method that explores by one.
    """

    networks: MetaNetworks
    coefficient: float
    cost: dict[str, float] | None
    belief: Belief | None = None


def starting_point(method: Method, setting: Setting, meta_seed: int, folder: Path) -> StartingPoint:
    """Networks of a method: as initialised, as they were handed over, or meta-trained in ``folder`` (resumable, one for each seed).

    Raises ConfigError when that needs demonstrations in skills and there is no skill encoder.
    """
    config, start = setting.configure(method, meta_seed), setting.start
    skills = setting.skills_of(method, config)
    if method.meta is None:
        torch.manual_seed(meta_seed)
        layout = ContextLayout(len(skills.features.mean), config.skills.skill_dim)
        networks = MetaNetworks.fresh(skills, layout, config.networks)
        belief = None
        if method.explores_as_skillet:
            belief = start.belief or starting_point(SKILLET, setting, meta_seed, folder).belief
        return StartingPoint(networks, config.meta.policy_posterior_coefficient, {"updates": 0, "environment_steps": 0, "cpu_s": 0}, belief)
    if start.networks is not None and not needs_meta_training(method, setting, meta_seed):
        return StartingPoint(start.networks, start.coefficient, None, start.belief)
    if config.meta.demonstrations and not start.has_skill_encoder:
        raise ConfigError(
            f"{method.label} with meta seed {meta_seed} begins with demonstrations, which need the skill encoder that a bundle lacks: give "
            "--run in place of --bundle, or --set meta.demonstrations=0"
        )
    offline = setting.offline() if config.meta.demonstrations else ()
    run_dir = folder / f"{method.meta}-seed{meta_seed}"
    trainer = method.trainer(config, skills, setting.training_simulator, setting.train_tasks, run_dir, setting.device, offline)
    before = {name: value.clone() for name, value in skills.state_dict().items()}
    networks = trainer.run()
    differ = any(not torch.equal(value, before[name]) for name, value in networks.skills.state_dict().items())
    if differ and not method.primitive_actions:  # whose skills are made up anew each time, and say nothing
        raise ConfigError(f"{run_dir} was meta-trained on other skills than these: choose another --out, or delete it")
    lines = [json.loads(line) for line in (run_dir / "meta.jsonl").read_text().splitlines()]
    steps = sum(line["environment_steps"] for line in lines)
    cost = {"updates": trainer.updates, "environment_steps": steps, "cpu_s": lines[-1]["cpu_s"]}
    belief = _belief(networks, setting, config, run_dir) if method.believes(config) else None
    return StartingPoint(networks, float(trainer.learner.policy_posterior()), cost, belief)


def _belief(networks: MetaNetworks, setting: Setting, config: TrainingConfig, run_dir: Path) -> Belief:
    """As the stage ``belief`` learns it, kept in ``run_dir``; learned anew where what is there is of other settings."""
    file = run_dir / "belief.safetensors"
    if file.exists():
        with suppress(ConfigError):
            return TrainedBelief.load(file, config, networks).belief()
    learned = BeliefTrainer(config, networks, setting.training_simulator, setting.train_tasks, run_dir).run()
    learned.save(file, config, networks)
    return learned.belief()


def needs_meta_training(method: Method, setting: Setting, meta_seed: int) -> bool:
    """Whether a method's networks are meta-trained here: they are not where it has none, or where Skillet's were handed over."""
    handed_over = method.meta == "skillet" and setting.start.networks is not None and setting.start.meta_seed == meta_seed
    return method.meta is not None and not handed_over
