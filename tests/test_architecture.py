"""The house rules that a reader cannot see from one file: who imports whom, where torch may be, and that nothing is unpickled."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("service", "training", "clients", "benchmarks", "deploy")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
RUNS_CODE_FROM_DATA = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LEARNER_SIDE = ("service.worker", "service.learning", "service.guards", "service.held_back_check")
"""The modules of the service that run in the learner process."""
UNPICKLES = {("torch", "load"), ("torch", "save"), ("np", "save"), ("numpy", "save")}


def name_of(path):
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively; the project imports by full names"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module, *packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_import_contracts_of_pyproject_hold():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("module", ["service.app", "service.supervisor"])
def test_the_api_imports_no_torch_and_no_training_code(module):
    show = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    loaded = done.stdout.splitlines()
    assert module in loaded
    assert not [name for name in loaded if within(name, "torch")]
    assert [name for name in loaded if within(name, "training") and not within(name, "training.contract")] == ["training"]


def test_only_the_learners_modules_reach_torch_and_training_and_only_they_import_one_another():
    for path in SOURCES:
        module = name_of(path).removesuffix(".py").replace("/", ".")
        if module.startswith("service.") and module not in LEARNER_SIDE:
            wrong = [
                name for name in imports(path) if within(name, "torch", "training", *LEARNER_SIDE) and not within(name, "training.contract")
            ]
            assert wrong == [], f"{module} runs in API processes"


def test_clients_reach_the_service_over_the_network_only():
    files = [path for path in SOURCES if path.is_relative_to(ROOT / "clients")]
    assert files
    assert [(name_of(path), module) for path in files for module in imports(path) if within(module, "service", "training", "torch")] == []


def test_the_contract_between_training_and_service_needs_numpy_and_pydantic_and_for_signatures_cryptography():
    files = [path for path in SOURCES if path.is_relative_to(ROOT / "training/contract")]
    outside = {
        (path.name, package)
        for path in files
        for module in imports(path)
        if not within(module, "training.contract") and (package := module.partition(".")[0]) not in sys.stdlib_module_names
    }
    assert {package for _, package in outside} == {"numpy", "pydantic", "cryptography"}
    assert {name for name, package in outside if package == "cryptography"} == {"signature.py"}


def test_signatures_are_an_extra_that_nothing_needs_until_it_is_asked_for():
    code = "import sys, training.contract.bundle, training.sign; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_file_reads_or_writes_pickles(path):
    assert [module for module in imports(path) if within(module, *RUNS_CODE_FROM_DATA)] == []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            allowed = [word for word in node.keywords if word.arg == "allow_pickle" and not _is_false(word.value)]
            assert not allowed, f"line {node.lineno}: allow_pickle"
            called = node.func
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                assert (called.value.id, called.attr) not in UNPICKLES, f"line {node.lineno}: {called.value.id}.{called.attr}"


def _is_false(value):
    return isinstance(value, ast.Constant) and value.value is False
