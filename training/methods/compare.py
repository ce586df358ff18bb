"""``python -m training compare --config maze``: every method on the same unseen tasks, from the same skills; resumable."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import TextWrapper

import torch
from rich.console import Console

from training.arguments import whole_number
from training.config import TrainingConfig, load_config, presets
from training.contract.bundle import Bundle
from training.contract.errors import ConfigError
from training.domains import open_domain
from training.methods.ablations import ABLATIONS
from training.methods.catalogue import METHODS, SKILLET
from training.methods.figure import plot_comparison
from training.methods.meta_stage import needs_meta_training
from training.methods.method import Method
from training.methods.published import PUBLISHED
from training.methods.report import FULL_RETURN, NEAR, MethodResults, summarise, tables
from training.methods.setting import Setting
from training.methods.start import Start, start_from_bundle, start_from_run
from training.methods.unit import Unit, kept_units, run_unit
from training.offline import offline_episodes
from training.run import Run, check_device
from training.stages import collect, skills

RUNNABLE = {**METHODS, **ABLATIONS}
_ABLATIONS = "ablations"
"""Stands for all of them on the command line."""


def _described(methods: Mapping[str, Method]) -> str:
    lines = TextWrapper(110, initial_indent="  ", subsequent_indent=18 * " ")
    return "\n".join(lines.fill(f"{method.name:15} {method.label}: {method.about}") for method in methods.values())


EPILOG = f"""\
methods:
{_described(METHODS)}

ablations of Skillet, from its own meta-training, run only where they are named (or all of them by --methods skillet ablations):
{_described(ABLATIONS)}

Where the skills come from: --bundle takes them (and Skillet's meta-trained networks) from a bundle; --run from the folder of a run of the
pipeline, and Skillet's networks too if its meta-training is complete; without either they are made first, in OUT/skills.

What it leaves in OUT: sessions/*.json (returns of every session, written every few episodes), compare.json, compare.md and compare.png
(of all that is there, from this command or an earlier one), meta/* (meta-training of each method that has one) and checkpoints/*. Start
the same command again after an interruption, or with more --episodes, --seeds or --methods: what is there is not run again. Delete OUT to
begin anew.

examples:
  python -m training compare --config maze --bundle bundles/maze --methods skillet spirl --tasks test:3 --episodes 40
  python -m training compare --config maze --bundle bundles/maze --methods skillet ablations --episodes 50 --out runs/ablations-maze
  python -m training compare --config maze --bundle bundles/maze --set meta.updates=4000 --seeds 0 1 2 --episodes 100 --jobs 2
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m training compare",
        description="Run methods on unseen tasks and compare them: JSON, tables, a figure.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--config", required=True, help=f"a preset ({', '.join(presets())}) or a TOML file")
    made.add_argument("--methods", nargs="+", choices=[*RUNNABLE, _ABLATIONS], default=list(METHODS), metavar="METHOD",
                      help="default: all methods, no ablations")  # fmt: skip
    made.add_argument("--tasks", metavar="SPLIT[:N]", help="split of the environment's tasks, or its first N (default: the test tasks)")
    made.add_argument("--meta-seeds", nargs="+", type=whole_number(0), default=[0], metavar="SEED",
                      help="seeds of meta-training (default: 0)")  # fmt: skip
    made.add_argument("--seeds", nargs="+", type=whole_number(0), default=[0], metavar="SEED",
                      help="seeds of the sessions on each task (default: 0)")  # fmt: skip
    made.add_argument("--episodes", type=whole_number(1), default=100, help="of each session, conditioning included (default: 100)")
    made.add_argument("--deterministic-every", type=whole_number(0), default=20, metavar="N",
                      help="episodes between episodes with the mean skill, which nothing learns from; 0: none (default: 20)")  # fmt: skip
    source = made.add_mutually_exclusive_group()
    source.add_argument("--bundle", type=Path, help="take skills and Skillet's networks from this bundle")
    source.add_argument("--run", type=Path, help="take skills, and Skillet's networks if they are there, from this run's folder")
    made.add_argument("--out", type=Path, help="where everything goes (default: runs/compare-NAME)")
    made.add_argument("--jobs", type=whole_number(1), default=1, help="processes, each with its methods (default: 1)")
    made.add_argument("--threads", type=whole_number(1), default=1, help="torch threads of each process (default: 1)")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where networks are meta-trained (default: cpu)")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="e.g. --set meta.updates=5000; "
                      "of Skillet's configuration, from which the methods' are made")  # fmt: skip
    made.add_argument("--no-report", action="store_true", help="run only; write no tables and no figure")
    return made


def compare(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit code. Raises SkilletError for what cannot be run."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    check_device(options.device)
    changes = [*options.overrides, f"evaluate.deterministic_every={options.deterministic_every}"]
    config = load_config(options.config, changes)
    out = options.out or Path("runs") / f"compare-{config.domain.name}"
    console = Console(stderr=True, highlight=False)
    methods = _methods(options.methods, config, console)
    units = [Unit(method, meta, seed) for method in methods for meta in options.meta_seeds for seed in options.seeds]
    setting = _setting(config, options, out, console)
    if options.jobs > 1:
        _run_in_processes(units, arguments, options.jobs, setting)
    else:
        for number, unit in enumerate(units, 1):
            console.print(f"compare: {number} of {len(units)}: {unit.method.label}, meta seed {unit.meta_seed}, seed {unit.seed}")
            run_unit(unit, setting, options.episodes, out)
    if not options.no_report:
        kept, others = kept_units(RUNNABLE, setting, out)
        for path in others:
            console.print(
                f"compare: {path} is not in the report: it was run with another configuration, on other tasks or from another start"
            )
        write_report(_whole(kept, out, console), config.domain.name, out)
        console.print(f"compare: see {out}/compare.md, {out}/compare.png and {out}/compare.json", soft_wrap=True)
    return 0


def _methods(given: Sequence[str], config: TrainingConfig, console: Console) -> list[Method]:
    """Those that were asked for; of all ablations, those that change something with this configuration. Refuses what cannot run with it."""
    names = dict.fromkeys(name for each in given for name in (ABLATIONS if each == _ABLATIONS else (each,)))
    same = [name for name in names if name not in given and RUNNABLE[name].is_same(SKILLET, config)]
    if same:
        console.print(f"compare: {', '.join(same)} would change nothing here, and will not be run", soft_wrap=True)
    methods = [RUNNABLE[name] for name in names if name not in same]
    for method in methods:
        method.configure(config)
    return methods


def _whole(units: Sequence[Unit], out: Path, console: Console) -> list[Unit]:
    """Those with as many episodes as the longest of their method: what is still running does not cut the others short."""
    done = [(unit, unit.episodes_done(out)) for unit in units]
    longest = {unit.method.name: episodes for unit, episodes in sorted(done, key=lambda each: each[1])}
    for unit, episodes in done:
        if episodes < (of := longest[unit.method.name]):
            console.print(f"compare: {unit.name} is not in the report: it stands at episode {episodes} of {of}")
    return [unit for unit, episodes in done if episodes == longest[unit.method.name]]


def write_report(units: Sequence[Unit], domain: str, out: Path) -> None:
    """``compare.json``, ``compare.md`` and ``compare.png`` of units that have results."""
    full_return = FULL_RETURN.get(domain)
    level = NEAR * (full_return or 1.0)
    results = []
    for name in dict.fromkeys(unit.method.name for unit in units):
        files = [unit.results(out) for unit in units if unit.method.name == name]
        results.append(MethodResults.of(RUNNABLE[name], [json.loads(file.read_text()) for file in files]))
    published = PUBLISHED.get(domain, {})
    summary = summarise(results, level)
    (out / "compare.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / "compare.md").write_text(tables(summary, published, level))
    plot_comparison(results, published, out / "compare.png", domain=domain, full_return=full_return)


def _setting(config: TrainingConfig, options: argparse.Namespace, out: Path, console: Console) -> Setting:
    domain = open_domain(config)
    split, _, count = (options.tasks or config.domain.test_tasks).partition(":")
    try:
        tasks = list(domain.env.get_wrapper_attr("tasks")(split))[: whole_number(1)(count) if count else None]
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"--tasks {options.tasks}: {error}") from error
    start = _start(config, options, out)
    return Setting.of(domain, start, tasks, lambda: offline_episodes(config, domain.env, console.print), options.device)


def _start(config: TrainingConfig, options: argparse.Namespace, out: Path) -> Start:
    if options.bundle:
        return start_from_bundle(Bundle.load(options.bundle), config)
    run = Run(config, options.run or out / "skills", None, command="compare", keep_config=options.run is None)
    for name, stage in (("collect", collect), ("skills", skills)):
        if not options.run and not run.complete(name):
            stage(run)
            run.finish(name)
    return start_from_run(run)


def _run_in_processes(units: Sequence[Unit], arguments: Sequence[str], jobs: int, setting: Setting) -> None:
    """One process for each meta-training and the sessions that start from it, so that no two write in one folder."""
    groups: dict[tuple[str, int], list[str]] = {}
    for unit in units:
        method, meta_seed = unit.method, unit.meta_seed
        trains = needs_meta_training(SKILLET if method.explores_as_skillet else method, setting, meta_seed)
        names = groups.setdefault((method.shares if trains else method.name, meta_seed), [])
        if method.name not in names:
            names.append(method.name)
    begin, end = [sys.executable, "-m", "training", "compare", *arguments], ["--jobs", "1", "--no-report"]
    commands = [[*begin, "--methods", *names, "--meta-seeds", str(meta), *end] for (_, meta), names in groups.items()]
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(lambda command: subprocess.run(command, check=False).returncode, commands))
    failed = [" ".join(command[2:]) for command, code in zip(commands, codes, strict=True) if code]
    if failed:
        raise ConfigError(f"{len(failed)} of {len(commands)} processes failed; the others' results are kept. The first: {failed[0]}")
