"""``python -m benchmarks.adaptation``: how fast sessions adapt, over HTTP, on tasks that the bundle was never trained for.

Runs ``python -m clients.simulator`` for every task and seed against a running service, then writes the learning curve (mean and 95 %
bootstrap interval over tasks and seeds) as a PNG, a table as Markdown and all numbers as JSON, beside the published curves. Runs that are
there already are kept, so it can be stopped and started again.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import gymnasium as gym
import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.published import PUBLISHED, Curve
from clients.simulator.tasks import find_domain
from training.statistics import bootstrap_interval

Returns = NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then report. Returns the exit code."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    tasks = options.task or test_tasks(options.env)
    wanted = [(task, seed) for seed in options.seeds for task in tasks]
    failed = run_all(options, [run for run in wanted if not complete(result_file(options.out, *run), options.episodes)])
    if failed:
        print(f"{len(failed)} of {len(wanted)} runs failed; the first said: {failed[0]}", file=sys.stderr)
        return 1
    results = [json.loads(result_file(options.out, *run).read_text()) for run in wanted]
    returns = np.array([[episode["return"] for episode in result["episodes"][: options.episodes]] for result in results], float)
    published = PUBLISHED.get(options.env, {})
    report = summarise(returns, options.conditioning)
    (options.out / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(returns, options.conditioning, published, options.plot or options.out / "curve.png", options.env)
    text = table(returns, options.conditioning, published, results)
    (options.out / "table.md").write_text(text)
    print(text)
    return 0


def test_tasks(env: str) -> list[str]:
    """The unseen tasks of an environment, as ``--task`` takes them."""
    domain = find_domain(env)
    environment = gym.make(domain.env_id)
    return [domain.task_label(task) for task in environment.get_wrapper_attr("tasks")("test")]


def result_file(out: Path, task: str, seed: int) -> Path:
    """Where one run's JSON lies."""
    return out / f"{task.replace(',', '-').replace(' ', '_')}-seed{seed}.json"


def complete(file: Path, episodes: int) -> bool:
    """Whether a run is there and long enough."""
    return file.exists() and len(json.loads(file.read_text())["episodes"]) >= episodes


def run_all(options: argparse.Namespace, runs: list[tuple[str, int]]) -> list[str]:
    """Run the simulator client for each (task, seed), a few at once. Returns what the failed ones said."""
    failed: list[str] = []
    columns = (TextColumn("[bold]adaptation"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    running: set[subprocess.Popen[str]] = set()
    lock = threading.Lock()

    def one(task: str, seed: int) -> str | None:
        command = [
            sys.executable,
            "-m",
            "clients.simulator",
            "--url",
            options.url,
            "--env",
            options.env,
            "--task",
            task,
            "--seed",
            str(seed),
        ]
        command += ["--episodes", str(options.episodes), "--conditioning", str(options.conditioning), *options.client_option]
        command += ["--json", str(result_file(options.out, task, seed))]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with lock:
            running.add(process)
        _, said = process.communicate()
        with lock:
            running.discard(process)
        return None if process.returncode == 0 else f"{task} seed {seed}: {said.strip().splitlines()[-1:] or process.returncode}"

    with Progress(*columns) as progress, ThreadPoolExecutor(options.jobs) as pool:
        bar = progress.add_task("", total=len(runs))
        try:
            for future in as_completed([pool.submit(one, *run) for run in runs]):
                if error := future.result():
                    failed.append(error)
                progress.advance(bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
    return failed


def summarise(returns: Returns, conditioning: int) -> dict[str, Any]:
    """Means and 95 % intervals of the blocks that the project promises, and of every episode."""
    blocks = {"conditioning": (0, conditioning), "five after conditioning": (conditioning, conditioning + 5)}
    blocks |= {f"episodes {a}-{b}": (a - 1, b) for a, b in ((45, 50), (50, 60), (90, 100)) if b <= returns.shape[1]}
    rng = np.random.default_rng(0)
    summary: dict[str, Any] = {
        "runs": len(returns),
        "episodes": int(returns.shape[1]),
        "blocks": {},
        "per_episode": returns.mean(0).round(4).tolist(),
    }
    for name, (begin, end) in blocks.items():
        values = returns[:, begin:end].mean(1)
        low, high = bootstrap_interval(values, rng)
        summary["blocks"][name] = {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}
    return summary


def table(returns: Returns, conditioning: int, published: dict[str, Curve], results: list[dict[str, Any]]) -> str:
    """Markdown: the blocks, then single points beside the published curves (ours averaged over five episodes around each)."""
    summary = summarise(returns, conditioning)
    lines = ["| block | mean | 95 % interval |", "|---|---|---|"]
    lines += [f"| {name} | {b['mean']:.3f} | {b['low']:.3f} to {b['high']:.3f} |" for name, b in summary["blocks"].items()]
    names = list(published)
    lines += ["", "| episode | Skillet, over HTTP | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for episode in sorted({e for curve in published.values() for e in curve if 0 < e <= returns.shape[1]}):
        first, end = _side(episode, conditioning, returns.shape[1])
        around = returns[:, max(first, episode - 3) : min(end, episode + 2)].mean()
        cells = [f"{curve[episode]:.2f}" if episode in curve else "" for curve in published.values()]
        lines.append(f"| {episode} | {around:.2f} | " + " | ".join(cells) + " |")
    lines += ["", "| task | conditioning | five after | last ten |", "|---|---|---|---|"]
    tasks = np.array([result["task"] for result in results])
    for task in dict.fromkeys(tasks):
        mine = returns[tasks == task]
        parts = (mine[:, :conditioning], mine[:, conditioning : conditioning + 5], mine[:, -10:])
        lines.append(f"| {task} | " + " | ".join(f"{part.mean():.2f}" if part.size else "" for part in parts) + " |")
    return "\n".join(lines) + "\n"


def plot(returns: Returns, conditioning: int, published: dict[str, Curve], file: Path, env: str) -> None:
    """The learning curve with its interval beside the published points; five episodes averaged, never across the conditioning's end."""
    rng = np.random.default_rng(0)
    figure, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
    ax.axvspan(0.5, conditioning + 0.5, color="0.94", lw=0)
    ax.text((conditioning + 1) / 2, 0.02 * ax.get_ylim()[1], "conditioning", ha="center", color="0.45", fontsize=9)
    label: str | None = f"Skillet over HTTP ({len(returns)} runs, mean and 95 % interval)"
    for begin, part in ((0, returns[:, :conditioning]), (conditioning, returns[:, conditioning:])):
        if not part.size:
            continue
        smooth = np.array([[row[max(0, i - 2) : i + 3].mean() for i in range(len(row))] for row in part])
        band = np.array([bootstrap_interval(column, rng) for column in smooth.T])
        at = begin + 1 + np.arange(part.shape[1])
        ax.fill_between(at, band[:, 0], band[:, 1], color="tab:blue", alpha=0.2, lw=0)
        ax.plot(at, smooth.mean(0), color="tab:blue", lw=2, label=label)
        label = None
    for (name, curve), style in zip(published.items(), ("o--C1", "s:C2", "^:C3"), strict=False):
        points = [(e, v) for e, v in sorted(curve.items()) if e <= returns.shape[1]]
        ax.plot(*zip(*points, strict=True), style, ms=4, lw=1, label=name)
    ax.set(
        xlabel="episode",
        ylabel="return of the episode, stochastic policy",
        xlim=(0.5, returns.shape[1] + 0.5),
        title=f"{env}: ten unseen tasks",
    )
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="lower right", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _side(episode: int, conditioning: int, episodes: int) -> tuple[int, int]:
    """The episodes (from 0, half open) on the same side of the end of conditioning as ``episode`` (from 1)."""
    return (0, conditioning) if episode <= conditioning else (conditioning, episodes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a running service (default: %(default)s)")
    parser.add_argument("--env", default="maze")
    parser.add_argument("--task", action="append", help="a task as clients.simulator takes it; several allowed (default: the test split)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--conditioning", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="simulator clients at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation"), help="folder of results (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="where the picture goes (default: OUT/curve.png)")
    parser.add_argument(
        "--client-option", action="append", default=[], help="passed on to clients.simulator, e.g. --client-option=--no-finetune"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
