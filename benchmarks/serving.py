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
from benchmarks.servers.decoder import BUNDLE
from benchmarks.skillet_service import SkilletService, act_body, observation_of, step_body

ACTS = 40
"""Steps that one session acts without an outcome in the row of `act`: then comes the next session."""

Walks = Callable[[int, int], Sequence[Walk]]


@dataclass(frozen=True)
class Row:
    """One way to get actions, ready to be measured: ``walks(connections, seconds)`` makes what a run drives along."""

    name: str
    port: int
    body: str
    pid: int
    walks: Walks


@dataclass(frozen=True)
class Figures:
    """A row's figures: medians over the rounds; ``to_floor`` is the ratio of p50 to the floor's within a round."""

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


def rows_of(bundle: Path, folder: Path, stack: ExitStack, *, peers: Sequence[str]) -> list[Row]:
    """Start every server."""
    act = act_body(observation_of(bundle))
    rows = [_asgi(name, app, bundle, folder, stack) for name, app in (("bare ASGI (floor)", "floor"), ("plain FastAPI", "plain_fastapi"))]
    service = SkilletService(bundle, folder, stack)

    def act_walks(connections: int, seconds: int) -> list[Walk]:
        return [Walk(f"{service.open_session()}/act", 0, ACTS) for _ in range(max(connections, seconds * 8000 // ACTS))]

    rows.append(Row("Skillet act", service.port, act, service.pid, act_walks))
    rows.append(Row("Skillet step", service.port, step_body(observation_of(bundle)), service.pid, Stepping(service)))
    return rows + _peers(bundle, folder, stack, peers)


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
    return Figures(row.name, connections, to_floor, p50_ms, p99_ms, per_s, peak_mb(family(row.pid)))


def table(figures: Sequence[Figures]) -> str:
    """As Markdown."""
    lines = ["| | connections | p50 / floor | p50 ms | p99 ms | requests/s | peak MB |", "|---|---|---|---|---|---|---|"]
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
        (axes[1], most, "per_s", f"requests/s, {most} connection(s)"),
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
    parser.add_argument("--bundle", type=Path, default=Path("bundles/maze"))
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of one row in one round")
    parser.add_argument("--peers", nargs="*", default=[peer.name for peer in PEERS], help="other servers; without a name: none")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here")
    options = parser.parse_args()
    figures: list[Figures] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serving-")))
        rows = rows_of(options.bundle, folder, stack, peers=options.peers)
        for connections in options.connections:
            figures += measure(rows, connections, options.rounds, options.seconds)
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n")
    if options.plot:
        plot(figures, options.plot)


if __name__ == "__main__":
    main()
