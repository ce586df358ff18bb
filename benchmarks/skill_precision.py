"""Wall time of skill extraction's gradient steps in float32 and in bfloat16, in turns within one run, on random windows.

python -m benchmarks.skill_precision --config kitchen
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from training.config import TrainingConfig, load_config
from training.data import Episode
from training.domains import open_domain
from training.skill_extraction import SkillLearner, SkillWindows, build_skill_model

PRECISIONS = ("float32", "bfloat16")


def random_episodes(state_dim: int, action_dim: int, count: int = 40, steps: int = 200) -> list[Episode]:
    """Episodes of noise, of the shapes of a robot's."""
    rng = np.random.default_rng(0)
    return [
        Episode(rng.standard_normal((steps + 1, state_dim)).astype(np.float32), rng.uniform(-1, 1, (steps, action_dim)).astype(np.float32))
        for _ in range(count)
    ]


def gradient_step(config: TrainingConfig, windows: SkillWindows) -> Callable[[], float]:
    """A function that makes one gradient step and returns its reconstruction error, which waits for the device."""
    limit = np.ones(windows.actions.shape[-1], np.float32)
    learner = SkillLearner(build_skill_model(config, windows, -limit, limit), config.skills, windows.device)
    generator = torch.Generator(windows.device).manual_seed(0)

    def step() -> float:
        return float(learner.update(*windows.sample(config.skills.batch, generator), generator)["action_mse"])

    return step


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser("python -m benchmarks.skill_precision", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--config", default="kitchen", help="a preset or a TOML file; its sizes of networks and batch (default: %(default)s)"
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set skills.batch=512")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="of a step in each precision (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    configs = [load_config(options.config, [*options.overrides, f"skills.precision={precision}"]) for precision in PRECISIONS]
    spec = open_domain(configs[0]).spec()
    windows = SkillWindows(random_episodes(spec.state_dim, spec.action_dim), configs[0].skills.horizon, device=options.device)
    steps, times = [gradient_step(config, windows) for config in configs], list[list[float]]()
    for turn in range(options.turns + 1):
        times.append([])
        for step in steps:
            began = time.perf_counter()
            step()
            times[turn].append(time.perf_counter() - began)
    del times[0]  # the first turn makes what the others use
    print("| precision | ms a gradient step, median | 10 % to 90 % |\n|---|---|---|")
    for precision, each in zip(PRECISIONS, zip(*times, strict=True), strict=True):
        low, high = np.quantile(each, [0.1, 0.9])
        print(f"| {precision} | {statistics.median(each) * 1e3:.0f} | {low * 1e3:.0f} to {high * 1e3:.0f} |")
    print(f"\nfloat32 takes {statistics.median(one / other for one, other in times):.2f} times as long (median of {options.turns} turns)")


if __name__ == "__main__":
    main()
