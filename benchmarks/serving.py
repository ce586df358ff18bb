"""What a control step costs, beside other ways to serve the same policy: ``python -m benchmarks.serving [--json FILE] [--plot FILE]``.

Client (wrk) and servers run in processes of their own on this machine. All rows get the same observations; a row is measured for some
seconds at a time, the rows in turn, so that whatever else the machine does hits all of them; figures are medians over the rounds, ratios
are taken within a round. Before that each row is warmed up for a second that does not count. Stateful rows walk real steps: every request
has the next (episode, step) of its session and is stored in Redis before it is answered.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import urllib3

from benchmarks.http_load import Load, Walk, drive
from benchmarks.processes import family, free_port, peak_mb, started, uvicorn
from benchmarks.servers.decoder import BUNDLE

ACTS = 40
"""Steps that one session acts without an outcome in the row `act`: then comes the next session."""


@dataclass
class Row:
    """One way to get actions, ready to be measured: ``walks(connections, seconds)`` makes what a run drives along."""

    name: str
    port: int
    body: str
    pid: int
    walks: Callable[[int, int], Sequence[Walk]]
    note: str = ""


class Skillet:
    """A running service without learners, and the sessions that are driven."""

    def __init__(self, bundle: Path, folder: Path, stack: ExitStack) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", str(self.port), "--no-learner"]
        self.pid = stack.enter_context(started([*command, "--data-dir", str(folder / "data")], self.port, log=folder / "skillet.log"))
        self._http = urllib3.HTTPConnectionPool("127.0.0.1", self.port, maxsize=1)
        self._stepping: list[str] = []

    def step_walks(self, connections: int, seconds: int) -> list[Walk]:
        """One session for each connection, its first action given, from where it stands."""
        while len(self._stepping) < connections:
            path = self._open()
            self._post(f"{path}/act", {"episode": 0, "step": 0, "observation": self._observation})
            self._stepping.append(path)
        now = [json.loads(self._http.request("GET", path).data)["step"] for path in self._stepping[:connections]]
        return [Walk(f"{path}/step", step - 1) for path, step in zip(self._stepping, now, strict=False)]

    def act_walks(self, connections: int, seconds: int) -> list[Walk]:
        """As many fresh sessions as the run can need."""
        return [Walk(f"{self._open()}/act", 0, ACTS) for _ in range(max(connections, seconds * 8000 // ACTS))]

    def _open(self) -> str:
        session = self._post("/v1/sessions", {"conditioning_episodes": 1000, "ttl_s": 3600})
        self._observation = [
            (low + high) / 2 for low, high in zip(*(session["specs"]["observation"][end] for end in ("low", "high")), strict=True)
        ]
        path = f"/v1/sessions/{session['session_id']}"
        self._post(f"{path}/episodes", {})
        return path

    def _post(self, path: str, body: object) -> dict[str, object]:
        reply = self._http.request("POST", path, json=body)
        if reply.status >= 300:
            raise RuntimeError(reply.data.decode())
        return json.loads(reply.data)


def observation_of(bundle: Path) -> list[float]:
    """One with as many digits as readings have."""
    spec = json.loads((bundle / "manifest.json").read_text())["spec"]["observation"]
    return [
        low + (high - low) * (0.3 + 0.4 * (index * 0.6180339887 % 1))
        for index, (low, high) in enumerate(zip(spec["low"], spec["high"], strict=True))
    ]


def rows_of(bundle: Path, folder: Path, stack: ExitStack) -> list[Row]:
    """Start every server."""
    observation = json.dumps(observation_of(bundle))
    act = f'{{"episode": 0, "step": %d, "observation": {observation}}}'
    step = f'{{"episode": 0, "step": %d, "reward": 0.0, "next_observation": {observation}, "terminated": false, "truncated": false}}'
    rows = []
    for name, app in (("bare ASGI (floor)", "floor"), ("plain FastAPI + pydantic", "plain_fastapi")):
        port = free_port()
        command = uvicorn(f"benchmarks.servers.{app}:app", port)
        pid = stack.enter_context(started(command, port, log=folder / f"{app}.log", **{BUNDLE: str(bundle)}))
        rows.append(Row(name, port, act, pid, lambda connections, seconds: [Walk("/act")] * connections))
    skillet = Skillet(bundle, folder, stack)
    rows.append(Row("Skillet act", skillet.port, act, skillet.pid, skillet.act_walks))
    rows.append(Row("Skillet step", skillet.port, step, skillet.pid, skillet.step_walks))
    return rows


def measure(rows: Sequence[Row], connections: int, rounds: int, seconds: int) -> dict[str, list[Load]]:
    """Drive the rows in turn, ``rounds`` times, after a warm-up of a second each."""
    found: dict[str, list[Load]] = {row.name: [] for row in rows}
    for number in range(rounds + 1):
        for row in rows:
            length = seconds if number else 1
            load = drive(row.port, row.walks(connections, length), row.body, connections=connections, seconds=length)
            if number:
                found[row.name].append(load)
    return found


@dataclass(frozen=True)
class Figures:
    """A row's figures: medians over the rounds; ``to_floor`` is the ratio of p50 within a round."""

    name: str
    connections: int
    to_floor: float
    p50_ms: float
    p99_ms: float
    per_s: float
    peak_mb: float


def summarise(rows: Sequence[Row], found: dict[str, list[Load]], connections: int) -> list[Figures]:
    """Medians over the rounds."""
    floor = found[rows[0].name]
    return [
        Figures(
            row.name,
            connections,
            statistics.median(load.p50_ms / below.p50_ms for load, below in zip(found[row.name], floor, strict=True)),
            statistics.median(load.p50_ms for load in found[row.name]),
            statistics.median(load.p99_ms for load in found[row.name]),
            statistics.median(load.per_s for load in found[row.name]),
            peak_mb(family(row.pid)),
        )
        for row in rows
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("bundles/maze"))
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of one row in one round")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures: list[Figures] = []
    with ExitStack() as stack:
        rows = rows_of(options.bundle, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serving-"))), stack)
        for connections in options.connections:
            found = measure(rows, connections, options.rounds, options.seconds)
            figures += summarise(rows, found, connections)
            print(f"{connections} connection(s)".ljust(40) + "p50/floor  p50 ms   p99 ms   per s   peak MB")
            for each in figures[-len(rows) :]:
                print(f"{each.name:40}{each.to_floor:9.2f}{each.p50_ms:8.3f}{each.p99_ms:9.3f}{each.per_s:8.0f}{each.peak_mb:10.0f}")
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
