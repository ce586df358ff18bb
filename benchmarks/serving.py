"""What a control step costs, beside other ways to serve the same policy: ``python -m benchmarks.serving [--json FILE] [--plot FILE]``.

Client (wrk) and servers run in processes of their own on this machine. All rows get the same observations; a row is measured for some
seconds at a time, the rows in turn, so that whatever else the machine does hits all of them; figures are medians over the rounds, ratios
are taken within a round. Before that each row is warmed up for a second that does not count. Stateful rows walk real steps: every request
has the next (episode, step) of its session and is stored in Redis before it is answered. Skillet runs with one API process, one that stands
by, its Redis and no learner; its memory is that of all four. Other servers are installed into the user's cache folder the first time.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.http_load import Load, Walk, drive
from benchmarks.peers import PEERS
from benchmarks.processes import START_TIMEOUT_S, family, free_port, peak_mb, started, uvicorn
from benchmarks.python_rows import FLOOR, python_rows
from benchmarks.servers.decoder import BUNDLE
from benchmarks.skillet_service import SkilletService, act_body, observation_of, step_body
from benchmarks.stream import measure as measure_calls

BATCH = 32
ACTS = 40
"""Steps that one session acts without an outcome in the row of `act`: then comes the next session."""

Walks = Callable[[int, int], Sequence[Walk]]


@dataclass(frozen=True)
class Row:
    """One way to get actions, ready to be measured: ``walks(connections, seconds)`` makes what a run drives along.

    ``steps``: how many control steps a request makes; with more than one it is driven over one connection only.
    """

    name: str
    port: int
    body: str
    pid: int
    walks: Walks
    steps: int = 1


@dataclass(frozen=True)
class Figures:
    """A row's figures: medians over the rounds; ``to_floor`` is the ratio of p50 to the floor's within a round.

    Times are of a request, ``per_s`` counts control steps.
    """

    name: str
    connections: int
    to_floor: float
    p50_ms: float
    p99_ms: float
    per_s: float
    peak_mb: float


class Stepping:
    """Sessions that go on step by step, one for each connection."""

    def __init__(self, service: SkilletService) -> None:
        self._service, self._paths = service, list[str]()

    def __call__(self, connections: int, seconds: int) -> list[Walk]:
        """From where they stand."""
        while len(self._paths) < connections:
            path = self._service.open_session()
            self._service.post(f"{path}/act", json.loads(act_body(observation_of(self._service.bundle)) % 0))
            self._paths.append(path)
        return [Walk(f"{path}/step", self._service.get(path)["step"] - 1) for path in self._paths[:connections]]


class SteppingTogether:
    """Sessions that go on step by step, one request for a step of all."""

    def __init__(self, service: SkilletService, count: int) -> None:
        self._service, self._paths = service, [service.open_session() for _ in range(count)]
        observation = observation_of(service.bundle)
        for path in self._paths:
            service.post(f"{path}/act", json.loads(act_body(observation) % 0))
        outcome = step_body(observation)[1:]
        self.body = f'{{"items": [{", ".join(f"""{{"session_id": "{path.rpartition("/")[2]}", {outcome}""" for path in self._paths)}]}}'

    def __call__(self, connections: int, seconds: int) -> list[Walk]:
        """From where they stand."""
        return [Walk("/v1/step", self._service.get(self._paths[0])["step"] - 1)]


def rows_of(bundle: Path, folder: Path, stack: ExitStack, *, peers: Sequence[str]) -> tuple[SkilletService, list[Row]]:
    """Start every server. Returns Skillet's too."""
    act = act_body(observation_of(bundle))
    rows = [_asgi(name, app, bundle, folder, stack) for name, app in (("bare ASGI (floor)", "floor"), ("plain FastAPI", "plain_fastapi"))]
    service = SkilletService(bundle, folder, stack)

    def act_walks(connections: int, seconds: int) -> list[Walk]:
        return [Walk(f"{service.open_session()}/act", 0, ACTS) for _ in range(max(connections, seconds * 8000 // ACTS))]

    rows.append(Row("Skillet act", service.port, act, service.pid, act_walks))
    rows.append(Row("Skillet step", service.port, step_body(observation_of(bundle)), service.pid, Stepping(service)))
    together = SteppingTogether(service, BATCH)
    rows.append(Row(f"Skillet step, B={BATCH}", service.port, together.body, service.pid, together, BATCH))
    return service, rows + _peers(bundle, folder, stack, peers)


def _asgi(name: str, app: str, bundle: Path, folder: Path, stack: ExitStack) -> Row:
    port = free_port()
    command = uvicorn(f"benchmarks.servers.{app}:app", port)
    pid = stack.enter_context(started(command, port, log=folder / f"{app}.log", **{BUNDLE: str(bundle)}))
    return Row(name, port, act_body(observation_of(bundle)), pid, _same("/act"))


def _same(path: str) -> Walks:
    return lambda connections, seconds: [Walk(path)] * connections


def _peers(bundle: Path, folder: Path, stack: ExitStack, names: Sequence[str]) -> list[Row]:
    """Those that can be installed and answer; of the others it is said why not."""
    observation, rows = observation_of(bundle), []
    environment = {BUNDLE: str(bundle.absolute()), "PYTHONPATH": str(Path(__file__).parents[1])}
    for peer in (each for each in PEERS if each.name in names):
        print(f"installing {peer.name} ...", flush=True)
        port = free_port()
        try:
            peer.install()
            pid = stack.enter_context(started(peer.start_command(port), port, log=folder / f"{peer.name}.log", **environment))
            row = Row(peer.name, port, peer.body(json.dumps(observation), len(observation)), pid, _same(peer.path))
            _await_answers(row)
        except RuntimeError as error:
            print(f"{peer.name} is left out: {error}", flush=True)
        else:
            rows.append(row)
    return rows


def _await_answers(row: Row) -> None:
    """Some listen before their workers have loaded. Raises RuntimeError when no answer comes."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            drive(row.port, row.walks(1, 1), row.body, connections=1, seconds=1)
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise


def measure(rows: Sequence[Row], connections: int, rounds: int, seconds: int) -> list[Figures]:
    """Drive the rows in turn, ``rounds`` times, after a warm-up of a second each."""
    rows = [row for row in rows if row.steps == 1 or connections == 1]
    found: dict[str, list[Load]] = {row.name: [] for row in rows}
    for number in range(rounds + 1):
        for row in rows:
            length = seconds if number else 1
            load = drive(row.port, row.walks(connections, length), row.body, connections=connections, seconds=length)
            if number:
                found[row.name].append(load)
    return [_summary(row, found[row.name], found[rows[0].name], connections) for row in rows]


def _summary(row: Row, loads: Sequence[Load], floor: Sequence[Load], connections: int) -> Figures:
    to_floor = statistics.median(load.p50_ms / below.p50_ms for load, below in zip(loads, floor, strict=True))
    p50_ms, p99_ms, per_s = (statistics.median(getattr(load, name) for load in loads) for name in ("p50_ms", "p99_ms", "per_s"))
    return Figures(row.name, connections, to_floor, p50_ms, p99_ms, per_s * row.steps, peak_mb(family(row.pid)))


def measure_python(service: SkilletService, floor_port: int, rounds: int, stack: ExitStack) -> list[Figures]:
    """The rows that a Python client drives; their floor is its own."""
    rows = python_rows(service, floor_port, service.bundle, stack)
    times = measure_calls({name: call for name, (call, _) in rows.items()}, rounds)
    found = []
    for name, blocks in times.items():
        every = sorted(1e3 * value for block in blocks for value in block)
        medians = zip(map(statistics.median, blocks), map(statistics.median, times[FLOOR]), strict=True)
        p50_ms, p99_ms = statistics.median(every), every[int(0.99 * len(every))]
        per_s = rows[name][1] * len(every) / sum(every) * 1e3
        memory = peak_mb(family(service.pid)) if name.startswith("Skillet") else 0.0
        found.append(Figures(name, 1, statistics.median(one / floor for one, floor in medians), p50_ms, p99_ms, per_s, memory))
    return found


def table(figures: Sequence[Figures]) -> str:
    """As Markdown."""
    lines = ["| | connections | p50 / floor | p50 ms | p99 ms | steps/s | peak MB |", "|---|---|---|---|---|---|---|"]
    for each in figures:
        numbers = f"{each.to_floor:.2f} | {each.p50_ms:.3f} | {each.p99_ms:.3f} | {each.per_s:,.0f} | {each.peak_mb:.0f}"
        lines.append(f"| {each.name} | {each.connections} | {numbers} |")
    return "\n".join(lines)


def plot(figures: Sequence[Figures], file: Path) -> None:
    """Ratios at one connection and requests per second at the most."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    least, most = (pick(each.connections for each in figures) for pick in (min, max))
    chosen, axes = plt.subplots(1, 2, figsize=(11, 0.5 + 0.45 * len({each.name for each in figures})), sharey=True)
    for axis, connections, field, label in (
        (axes[0], least, "to_floor", f"p50 / bare ASGI, {least} connection(s)"),
        (axes[1], most, "per_s", f"steps/s, {most} connection(s)"),
    ):
        rows = [each for each in figures if each.connections == connections]
        colours = ["tab:blue" if each.name.startswith("Skillet") else "silver" for each in rows]
        bars = axis.barh([each.name for each in rows], [getattr(each, field) for each in rows], color=colours)
        axis.bar_label(bars, fmt="{:,.1f}" if field == "to_floor" else "{:,.0f}", padding=3, fontsize=8)
        axis.set(xscale="log", xlabel=label)
        axis.margins(x=0.2)
    axes[0].invert_yaxis()
    chosen.tight_layout()
    chosen.savefig(file, dpi=120)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("bundles/maze"), help="a bundle's folder (default: %(default)s)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16], help="at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of all rows (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="of one row in one round (default: %(default)s)")
    parser.add_argument(
        "--peers", nargs="*", default=[peer.name for peer in PEERS], help="other servers; without a name: none (default: %(default)s)"
    )
    parser.add_argument(
        "--blocks",
        type=int,
        default=10,
        help="of 200 calls, for each row of the Python client; 0: none of these rows (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here")
    options = parser.parse_args()
    figures: list[Figures] = []
    by_python: list[Figures] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serving-")))
        service, rows = rows_of(options.bundle, folder, stack, peers=options.peers)
        for connections in options.connections:
            figures += measure(rows, connections, options.rounds, options.seconds)
        print(table(figures), flush=True)
        if options.blocks:
            by_python = measure_python(service, rows[0].port, options.blocks, stack)
            print(f"\nOver one connection of a Python client, whose floor is another:\n\n{table(by_python)}")
            figures += by_python
    python_names = {each.name for each in by_python}
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n")
    if options.plot:
        plot([each for each in figures if each.name not in python_names], options.plot)


if __name__ == "__main__":
    main()
