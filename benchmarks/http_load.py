"""Drives an HTTP server with wrk, each connection along walks of its own (`load.lua`)."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Walk:
    """Requests to ``path`` for ``steps`` steps from ``first`` on."""

    path: str
    first: int = 0
    steps: int = 1 << 30


@dataclass(frozen=True)
class Load:
    """What one run of wrk found."""

    p50_ms: float
    p99_ms: float
    largest_ms: float
    per_s: float


def drive(port: int, walks: Sequence[Walk], body: str, *, connections: int, seconds: int) -> Load:
    """Run wrk with one thread for each connection; ``body`` has ``%d`` where the step goes. Raises RuntimeError for any failed request."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed; on Debian: apt-get install wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".walks") as plan:
        plan.writelines(f"{walk.path} {walk.first} {walk.steps}\n" for walk in walks)
        plan.flush()
        command = ["wrk", f"-t{connections}", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), f"http://127.0.0.1:{port}", "--"]
        ended = subprocess.run([*command, plan.name, str(connections), body], capture_output=True, text=True, check=False)
    line = next((line for line in ended.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"wrk failed: {ended.stdout} {ended.stderr}")
    found = json.loads(line.removeprefix("RESULT "))
    if found["errors"] or not found["requests"]:
        raise RuntimeError(f"{found['errors']} of {found['requests']} requests failed: {ended.stdout}")
    return Load(found["p50_us"] / 1e3, found["p99_us"] / 1e3, found["max_us"] / 1e3, 1e6 * found["requests"] / found["duration_us"])
