"""The unit of a comparison: one method with one meta-training seed and one session seed, on all tasks side by side."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training.config_comparison import digested
from training.contract.errors import ConfigError
from training.evaluate import TargetSession
from training.methods.meta_stage import StartingPoint, needs_meta_training, starting_point
from training.methods.method import Method
from training.methods.protocol import MethodProtocol
from training.methods.setting import Setting
from training.run_log import RunLog
from training.session_store import load_sessions, run_sessions


@dataclass(frozen=True)
class Unit:
    """Which runs belong together: they are made in lock-step, and are kept in one file."""

    method: Method
    meta_seed: int
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.method.name}-meta{self.meta_seed}-seed{self.seed}"

    def results(self, out: Path) -> Path:
        """The file of its results."""
        return out / "sessions" / f"{self.name}.json"

    def episodes_done(self, out: Path) -> int:
        """Of its results, which are there."""
        return len(json.loads(self.results(out).read_text())["sessions"][0]["returns"])


def run_unit(unit: Unit, setting: Setting, episodes: int, out: Path) -> None:
    """Run a unit to so many episodes, from where it stands; its results are written as it goes.

    Raises ConfigError when what stands there was run with another configuration, on other tasks or from another start.
    """
    config = setting.configure(unit.method, unit.meta_seed)
    fingerprint = _fingerprint(unit, config, setting)
    done = _episodes_done(unit, fingerprint, out)
    if done >= episodes:
        return
    start = starting_point(unit.method, setting, unit.meta_seed, out / "meta")
    protocol = MethodProtocol(
        unit.method, config, start.networks, start.coefficient, setting.spec_of(unit.method), setting.simulator, start.belief
    )
    folder = out / "checkpoints" / unit.name
    if not done:  # results that were deleted take what they went on from with them
        for stale in (folder, folder.with_suffix(".old")):
            shutil.rmtree(stale, ignore_errors=True)
    sessions = load_sessions(folder, protocol, setting.test_tasks, [unit.seed])
    begun = len(sessions[0].returns)
    with RunLog(out / "logs", unit.name, episodes, "episodes", resumed_at=begun) as log:

        def tell() -> None:  # before the sessions are kept: the other way, episodes of a run interrupted in between would never be told
            _write(unit.results(out), _content(unit, setting, config, start, sessions, log.cpu_s) | {"fingerprint": fingerprint})

        run_sessions(protocol, sessions, episodes, folder, log, tell)


def kept_units(methods: Mapping[str, Method], setting: Setting, out: Path) -> tuple[list[Unit], list[Path]]:
    """The units that have results in ``out``, in the order of ``methods``; and results that are another setting's, or unreadable."""
    found, others = list[Unit](), list[Path]()
    for path in sorted((out / "sessions").glob("*.json")):
        try:
            content = json.loads(path.read_text())
            unit = Unit(methods[content["method"]], content["meta_seed"], content["seed"])
            fits = content["fingerprint"] == _fingerprint(unit, setting.configure(unit.method, unit.meta_seed), setting)
        except (ValueError, KeyError, TypeError):
            fits = False
        if fits and unit.results(out) == path:
            found.append(unit)
        else:
            others.append(path)
    order = list(methods)
    return sorted(found, key=lambda unit: (order.index(unit.method.name), unit.meta_seed, unit.seed)), others


def _episodes_done(unit: Unit, fingerprint: str, out: Path) -> int:
    path = unit.results(out)
    if not path.exists():
        return 0
    try:
        content = json.loads(path.read_text())
        found, done = content["fingerprint"], len(content["sessions"][0]["returns"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{path} is cut or damaged: delete it, and its sessions run anew") from error
    if found != fingerprint:
        raise ConfigError(
            f"{path} was run with another configuration, on other tasks or from another start; choose another --out, or delete it"
        )
    return done


def _content(
    unit: Unit, setting: Setting, config: TrainingConfig, start: StartingPoint, sessions: Sequence[TargetSession], cpu_s: float
) -> dict[str, Any]:
    return {
        "method": unit.method.name,
        "meta_seed": unit.meta_seed,
        "seed": unit.seed,
        "start": setting.start.origin,
        "conditioning": config.evaluate.conditioning_episodes,
        "cost": {
            "meta": start.cost,
            "target": {
                "updates": sum(s.learner.updates for s in sessions if s.learner is not None),
                "environment_steps": sum(sum(s.steps) for s in sessions),
                "cpu_s": round(cpu_s, 1),
            },
        },
        "sessions": [{"task": list(s.task), "returns": s.returns, "deterministic_returns": s.deterministic_returns} for s in sessions],
    }


def _fingerprint(unit: Unit, config: TrainingConfig, setting: Setting) -> str:
    """Of everything that the results depend on, but not of how many episodes were asked for."""
    content = digested(config)
    content["evaluate"].pop("episodes")
    own_belief = unit.method.explores_as_skillet and setting.start.belief is None  # of a meta-training of Skillet's that is made for it
    if not needs_meta_training(unit.method, setting, unit.meta_seed) and not own_belief:
        content["meta"] = config.meta.policy_posterior_coefficient  # what networks that begin untrained begin with
    parts = [content, [list(task) for task in setting.test_tasks], setting.start.origin]
    if unit.method.explores_as_skillet or (unit.method.meta == "skillet" and not needs_meta_training(unit.method, setting, unit.meta_seed)):
        parts.append(setting.start.networks_digest)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    scratch.write_text(json.dumps(content) + "\n")
    os.replace(scratch, path)
