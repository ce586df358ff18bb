"""Tiny bundles that are kept between runs of the suite: an export takes many seconds."""

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from training.contract.bundle import Bundle


def kept_bundle(pytestconfig: pytest.Config, path: Path, **options: Any) -> Bundle:
    """A tiny bundle at ``path``; it is exported anew only when the code that makes it or its name has changed."""
    kept = pytestconfig.cache.mkdir("tiny-bundle") / f"{path.name}-{_sources_digest()}"
    if not kept.exists():
        from tests.tiny_bundle import make_tiny_bundle

        make_tiny_bundle(kept, **options)
    shutil.copytree(kept, path)
    return Bundle.load(path)


def _sources_digest() -> str:
    root = Path(__file__).parents[1]
    sources = [root / "tests/tiny_bundle.py", *sorted((root / "training").rglob("*.py"))]
    versions = [f"{name} {version(name)}" for name in ("torch", "onnx", "onnxruntime", "onnxscript")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources) + repr(versions).encode()).hexdigest()
