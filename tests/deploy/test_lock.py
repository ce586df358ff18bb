"""The lock file: what it is made of, and that it fits pyproject.toml."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deploy.lock import pins

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
LOCKED = dict(line.split("==") for line in LINES)
DIRECT = sorted({line for lines in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()] for line in lines})


def report(*packages):
    return json.dumps({"install": [{"metadata": {"name": name, "version": version}} for name, version in packages]})


def test_pins_are_sorted_and_hold_neither_build_labels_nor_cuda_packages_nor_the_project():
    packages = [
        ("torch", "2.13.0+cpu"),
        ("ml_dtypes", "0.6"),
        ("skillet", "0.1"),
        ("nvidia-cublas", "1"),
        ("triton", "3"),
        ("Jinja2", "3.1.6"),
    ]
    assert pins(report(*packages)) == ["jinja2==3.1.6", "ml-dtypes==0.6", "torch==2.13.0"]


def test_the_lock_file_is_exact_versions_and_nothing_else():
    assert len(LINES) > 50
    assert [line for line in LINES if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert [name for name in LOCKED if name.startswith(("nvidia-", "cuda-"))] == []


@pytest.mark.parametrize("requirement", [line for line in DIRECT if not line.startswith("skillet[")])
def test_every_direct_dependency_is_locked_in_its_range(requirement):
    wanted = Requirement(requirement)
    assert LOCKED[wanted.name.lower().replace("_", "-")] in wanted.specifier
