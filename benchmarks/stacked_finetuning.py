"""CPU time of fine-tuning's gradient steps: sessions one after the other against sessions stacked, in turns within one run.

python -m benchmarks.stacked_finetuning --bundle bundles/maze --sessions 1 5 10 30
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from training.contract.bundle import Bundle
from training.finetuning import Finetuner
from training.stacked_finetuning import FinetunerStack


def make_learners(bundle: Bundle, count: int) -> list[Finetuner]:
    """Learners with an episode of random rows each."""
    rng = np.random.default_rng(0)
    learners = []
    for seed in range(count):
        learner = Finetuner.from_bundle(bundle, rng.standard_normal(bundle.manifest.spec.task_embedding_dim).astype(np.float32), seed)
        layout = learner.networks.layout
        rows = rng.standard_normal((200, layout.width)).astype(np.float32)
        rows[:, [layout.reward, layout.terminated]] = 0.0
        rows[-1, layout.reward] = 1.0
        learner.add_episode(rows)
        learners.append(learner)
    return learners


def seconds(work: Callable[[], object], steps: int) -> float:
    """CPU time of one call, averaged over ``steps``."""
    began = time.process_time()
    for _ in range(steps):
        work()
    return (time.process_time() - began) / steps


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser("python -m benchmarks.stacked_finetuning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/maze"), help="a bundle's folder (default: %(default)s)")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 5, 10, 30], help="that learn side by side (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="gradient steps a turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| sessions | loop, ms a step and session | stacked, ms a step and session | ratio |\n|---|---|---|---|")
    for count in options.sessions:
        learners = make_learners(Bundle.load(options.bundle), count)
        stack = FinetunerStack(learners)
        turns = []
        for _ in range(options.turns):
            loop = seconds(lambda: [learner.update(1) for learner in learners], options.steps) / count  # noqa: B023  (called at once)
            turns.append((loop, seconds(stack.step, options.steps) / count))
        loop, stacked = (statistics.median(part) * 1e3 for part in zip(*turns, strict=True))
        ratio = statistics.median(a / b for a, b in turns)
        print(f"| {count} | {loop:.1f} | {stacked:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
