"""``python -m training STAGE --config maze``: every stage of the pipeline, resumable, each from what the former left."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from training.arguments import whole_number
from training.config import load_config, presets
from training.contract.errors import SkilletError
from training.methods.compare import compare
from training.run import Run
from training.sign import sign_bundle
from training.stages import STAGES


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:10} {(stage.__doc__ or '').splitlines()[0]}" for name, stage in STAGES.items())
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train skills and a meta-policy from offline data, and export them as a bundle.",
        epilog=f"stages, in their order:\n{lines}\n  all        every stage; those that are complete are skipped\n"
        "  compare    this method beside others on the unseen tasks (python -m training compare --help)\n"
        "  sign       say who made a bundle (python -m training sign --help)\n\n"
        "A stage that was interrupted goes on from its checkpoint when it is started again; belief and export (some minutes)\n"
        "begin anew.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=[*STAGES, "all"], metavar="STAGE")
    parser.add_argument("--config", required=True, help=f"a preset ({', '.join(presets())}) or a TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="e.g. --set meta.updates=5000")
    parser.add_argument("--run", type=Path, help="folder of checkpoints, logs and plots (default: runs/NAME-seedSEED)")
    parser.add_argument("--bundle", type=Path, help="where `export` writes (default: bundles/NAME)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where skills and networks are trained")
    parser.add_argument("--threads", type=whole_number(0), default=0, help="torch threads (default, or 0: torch's own choice)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage, or all, or the comparison of methods, or sign a bundle. Returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        match arguments:
            case ["compare", *rest]:
                return compare(rest)
            case ["sign", *rest]:
                return sign_bundle(rest)
        return _run_stages(arguments)
    except SkilletError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; start the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130


def _run_stages(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    command = "python -m training " + shlex.join(arguments)
    config = load_config(options.config, options.overrides)
    run = Run(config, options.run, options.bundle, command=command, device=options.device, threads=options.threads)
    for name in STAGES if options.stage == "all" else [options.stage]:
        if options.stage == "all" and run.complete(name):
            run.say(f"{name}: complete, skipped")
            continue
        STAGES[name](run)
        run.finish(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
