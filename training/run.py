"""One run of the pipeline: its configuration, its folder, and what its stages leave there for each other."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console

from training.checkpoint import load_checkpoint
from training.config import TrainingConfig
from training.config_comparison import incompatible_sections
from training.contract.errors import ConfigError
from training.contract.spec import MANIFEST
from training.data import Episode
from training.domains import Domain, open_domain
from training.experience import is_experience
from training.export import config_digest
from training.meta_training import MetaTrainer
from training.networks.skill_model import SkillModel
from training.offline import offline_episodes


class Run:
    """One run of the pipeline: its configuration, its folder, and what it has loaded.

    ``keep_config``: note the configuration in the folder, as whoever runs stages does; who only reads what they left does not.
    """

    def __init__(
        self,
        config: TrainingConfig,
        run_dir: Path | None,
        bundle_dir: Path | None,
        *,
        command: str,
        device: str = "cpu",
        threads: int = 0,
        keep_config: bool = True,
    ) -> None:
        check_device(device)
        if threads:
            torch.set_num_threads(threads)
        self.config, self.command, self.device = config, command, device
        self.dir = run_dir or Path("runs") / f"{config.domain.name}-seed{config.seed}"
        self.bundle_dir = bundle_dir or Path("bundles") / config.domain.name
        self.console = Console(stderr=True, highlight=False)
        self._check_config(keep=keep_config)

    @cached_property
    def domain(self) -> Domain:
        """The environment, simulator and tasks."""
        return open_domain(self.config)

    @cached_property
    def skills(self) -> SkillModel:
        """The trained skills."""
        low, high = (torch.from_numpy(limit) for limit in self.domain.action_limits)
        state_dim = self.domain.spec().state_dim
        mean, std = torch.zeros(state_dim), torch.ones(state_dim)
        model = SkillModel(self.config.features, self.config.skills, state_mean=mean, state_std=std, action_low=low, action_high=high)
        note = load_checkpoint(self.need("skills"), modules={"model": model})[1]
        if note["steps"] < self.config.skills.steps:
            raise ConfigError(
                f"skill extraction stands at step {note['steps']} of {self.config.skills.steps}: finish the stage 'skills' first"
            )
        return model.eval()

    def trainer(self, offline: Sequence[Episode] = ()) -> MetaTrainer:
        """The meta-trainer on the trained skills, as yet untrained."""
        tasks, simulator = self.domain.train_tasks, self.domain.training_simulator
        return MetaTrainer(self.config, self.skills, simulator, tasks, self.dir, self.device, offline)

    def offline_episodes(self) -> list[Episode]:
        """The offline data. Raises ConfigError when they are not there or do not fit the environment."""
        return offline_episodes(self.config, self.domain.env, self.say)

    def need(self, stage: str) -> Path:
        """The checkpoint of a stage. Raises ConfigError when that stage has not run."""
        path = self.dir / f"{stage}.safetensors"
        if not path.exists():
            raise ConfigError(f"no {path}: run the stage {stage!r} first (python -m training {stage} --config {self.config.domain.name})")
        return path

    def complete(self, stage: str) -> bool:
        """Whether a stage has finished with this configuration, and what it made is still there."""
        marker, made = self._marker(stage), self._made_by(stage)
        return marker.exists() and marker.read_text() == self._fingerprint() and (made is None or made.exists())

    def finish(self, stage: str) -> None:
        """Note that a stage has finished."""
        self._marker(stage).write_text(self._fingerprint())

    def _made_by(self, stage: str) -> Path | None:
        files = {"evaluate": self.dir / "evaluate.json", "export": self.bundle_dir / MANIFEST}
        nothing = stage == "collect" or (stage == "belief" and not self.config.belief.particles)
        return files.get(stage, None if nothing else self.dir / f"{stage}.safetensors")

    def _marker(self, stage: str) -> Path:
        return self.dir / f"{stage}.done"

    def _fingerprint(self) -> str:
        return config_digest(self.config) + "\n"

    def say(self, text: str) -> None:
        """One line to the person who waits."""
        self.console.print(text, soft_wrap=True)

    def _check_config(self, *, keep: bool) -> None:
        path, text = self.dir / "config.json", json.dumps(self.config.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        if path.exists() and path.read_text() != text:
            changed = incompatible_sections(json.loads(path.read_text()), self.config)
            checkpoints = [file for file in self.dir.glob("*.safetensors") if not is_experience(file)]
            if changed and checkpoints:
                raise ConfigError(
                    f"{self.dir} holds a run with another {', '.join(changed)}; choose another folder with --run, or delete it"
                )
        if keep:
            self.dir.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def check_device(device: str) -> None:
    """Raise ConfigError where torch has no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu")
