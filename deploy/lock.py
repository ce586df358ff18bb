"""Write the lock file: ``make lock``. pip resolves the extra ``dev``, which holds all the others, and every version it chose is pinned.

The result is a constraints file (``pip install -c requirements.lock ...``): exact versions, no hosts, no hashes, and no local version
labels, so that it fits every build of a release. What PyTorch's CUDA builds bring along is left out: those versions come with PyTorch's.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

HEADER = """\
# Exact versions of everything that the extra `dev` of pyproject.toml needs: a constraints file for pip, written by `make lock`.
# What PyTorch's CUDA builds bring along is not listed: `torch` pins it already.
"""
OF_CUDA_BUILDS = re.compile(r"^(nvidia-|cuda-|triton$)")


def pins(report: str) -> list[str]:
    """Lines ``name==version`` from pip's installation report, sorted, without this project itself and without CUDA's packages."""
    lines = []
    for item in json.loads(report)["install"]:
        name, version = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(), item["metadata"]["version"].partition("+")[0]
        if name != "skillet" and not OF_CUDA_BUILDS.match(name):
            lines.append(f"{name}=={version}")
    return sorted(lines)


def main(arguments: list[str]) -> int:
    """``lock.py FILE [REQUIREMENT ...]``: resolve, with further requirements if there are any, and write the file."""
    file, held = Path(arguments[0]), arguments[1:]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", "-e", ".[dev]", *held]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        return result.returncode
    lines = pins(result.stdout)
    file.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{file}: {len(lines)} pins")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
