"""``python -m benchmarks.adaptation``: how fast sessions adapt, over HTTP, on tasks that the bundle was never trained for.

Runs ``python -m clients.simulator`` for every task and seed against a running service, then writes the learning curve (mean and 95 %
bootstrap interval over tasks) as a PNG, a table as Markdown and all numbers as JSON, beside the published curves. Runs that are
there already are kept, so it can be stopped and started again.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym

from benchmarks.client_runs import ClientRuns, Run
from benchmarks.learning_curve import Curves, plot, summarise, table
from clients.sdk import SkilletClient, SkilletError
from clients.simulator.__main__ import without_module
from clients.simulator.tasks import Domain, find_domain
from training.methods.published import PUBLISHED

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then report. Returns the exit code."""
    options = _parser().parse_args(arguments)
    options.out = options.out or Path("runs/adaptation") / options.env
    domain = find_domain(options.env)
    runs = [Run(task, seed) for seed in options.seeds for task in options.task or unseen_tasks(domain)]
    clients = ClientRuns(options.url, options.env, options.episodes, options.conditioning, options.out, options.client_option)
    if not options.no_run:
        try:
            claim(
                options.out, {"bundle": served(options.url, domain), "conditioning": options.conditioning, "options": options.client_option}
            )
            failed = clients.run_missing(runs, options.jobs)
        except (SkilletError, ValueError) as error:
            print(f"python -m benchmarks.adaptation: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"stopped: {sum(map(clients.finished, runs))} of {len(runs)} runs are kept in {options.out}", file=sys.stderr)
            return INTERRUPTED
        if failed:
            print(f"{len(failed)} of {len(runs)} runs failed; the first said: {failed[0]}", file=sys.stderr)
            return 1
    return report(options, domain, [run for run in runs if clients.finished(run)], clients)


def unseen_tasks(domain: Domain) -> list[str]:
    """The test tasks of an environment, as ``--task`` takes them."""
    with closing(gym.make(domain.env_id)) as env:
        return [domain.task_label(task) for task in env.get_wrapper_attr("tasks")("test")]


def served(url: str, domain: Domain) -> str:
    """Digest of the service's bundle for this environment, the one that the simulator client takes. Raises ValueError."""
    with SkilletClient(url) as client:
        fitting = [b.digest for b in client.bundles() if without_module(b.env_id) == without_module(domain.env_id)]
    if not fitting:
        raise ValueError(f"expected a service with a bundle for {domain.env_id}; the one at {url} has none")
    return fitting[0]


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Note what the folder's runs were made with. Raises ValueError when it holds runs that were made with something else."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "settings.json"
    before = json.loads(note.read_text()) if note.exists() else settings
    if other := [name for name in settings if settings[name] != before.get(name)]:
        was = ", ".join(f"{name} {before.get(name)} instead of {settings[name]}" for name in other)
        raise ValueError(f"{folder} holds runs of {was}: name another folder with --out, or remove it")
    note.write_text(json.dumps(settings, indent=1) + "\n")


def report(options: argparse.Namespace, domain: Domain, runs: Sequence[Run], clients: ClientRuns) -> int:
    """Write curve, table and summary of the finished runs. Returns the exit code."""
    if not runs:
        print(f"no finished run of {options.episodes} episodes in {options.out}", file=sys.stderr)
        return 1
    records = [json.loads(clients.file(run).read_text()) for run in runs]
    curves = Curves.of(records, options.episodes, len(domain.subtasks(runs[0].task)))
    published = PUBLISHED.get(domain.name, {})
    (options.out / "summary.json").write_text(json.dumps(summarise(curves), indent=1) + "\n")
    plot(curves, published, options.plot or options.out / "curve.png")
    text = table(curves, published)
    (options.out / "table.md").write_text(text)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a running service (default: %(default)s)")
    parser.add_argument("--env", default="maze", help="of the simulator client (default: %(default)s)")
    parser.add_argument("--task", action="append", help="a task as clients.simulator takes it; several allowed (default: the test split)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a session of every task with each (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="of each session (default: %(default)s)")
    parser.add_argument("--conditioning", type=int, default=10, help="conditioning episodes, K (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="simulator clients at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of results (default: runs/adaptation/ENV)")
    parser.add_argument("--plot", type=Path, help="where the picture goes (default: OUT/curve.png)")
    parser.add_argument("--no-run", action="store_true", help="report on the runs that are there; needs no service")
    parser.add_argument(
        "--client-option", action="append", default=[], help="passed on to clients.simulator, e.g. --client-option=--no-finetune"
    )
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: the clients are stopped
    sys.exit(main())
