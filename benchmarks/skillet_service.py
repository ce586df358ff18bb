"""A Skillet of its own for a benchmark: API process, one standing by, embedded Redis, and learners if asked for."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import urllib3

from benchmarks.processes import family, free_port, started


class SkilletService:
    """Runs until ``stack`` is left; its data lie in ``folder``."""

    def __init__(self, bundle: Path, folder: Path, stack: ExitStack, *, learners: int = 0, **environment: str) -> None:
        self.bundle, self.port = bundle, free_port()
        command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", str(self.port), "--learners", str(learners)]
        command += ["--data-dir", str(folder / "data")]
        self.pid = stack.enter_context(started(command, self.port, log=folder / "skillet.log", **environment))
        self._http = urllib3.HTTPConnectionPool("127.0.0.1", self.port, maxsize=1, timeout=60.0)
        self.post("/v1/sessions", {"ttl_s": 1})  # it listens before it has loaded

    def processes(self, what: str) -> list[int]:
        """Process ids below it whose command line holds ``what``."""
        return [pid for pid in family(self.pid) if what in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")]

    def open_session(self, **options: Any) -> str:
        """The path of a new session whose first episode has begun. By default it does not stop exploring, and so does not learn.

        It explores by a belief: each skill costs what it does later too. What planning costs, `benchmarks.in_process` tells.
        """
        session = self.post("/v1/sessions", {"conditioning_episodes": 10_000, "exploration": "belief", "ttl_s": 36000, **options})
        path = f"/v1/sessions/{session['session_id']}"
        self.post(f"{path}/episodes", {})
        return path

    def post(self, path: str, body: object) -> Any:
        """The reply's content. Raises RuntimeError for a refusal."""
        return self._content(self._http.request("POST", path, json=body))

    def get(self, path: str) -> Any:
        """As `post`."""
        return self._content(self._http.request("GET", path))

    def _content(self, reply: urllib3.BaseHTTPResponse) -> Any:
        if reply.status >= 300:
            raise RuntimeError(reply.data.decode())
        return json.loads(reply.data)


def observation_of(bundle: Path) -> list[float]:
    """An observation inside the bundle's limits, with as many digits as readings have."""
    spec = json.loads((bundle / "manifest.json").read_text())["spec"]["observation"]
    limits = zip(spec["low"], spec["high"], strict=True)
    return [low + (high - low) * (0.3 + 0.4 * (index * 0.6180339887 % 1)) for index, (low, high) in enumerate(limits)]


def act_body(observation: list[float]) -> str:
    """A request of ``act`` in episode 0, with ``%d`` where the step goes."""
    return f'{{"episode": 0, "step": %d, "observation": {json.dumps(observation)}}}'


def step_body(observation: list[float]) -> str:
    """A request of ``step`` in episode 0, with ``%d`` where the step goes."""
    outcome = f'"reward": 0.0, "next_observation": {json.dumps(observation)}, "terminated": false, "truncated": false'
    return f'{{"episode": 0, "step": %d, {outcome}}}'
