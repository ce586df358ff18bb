"""Transitions that come in batches: ``python -m benchmarks.ingest [--sessions N] [--json FILE]``.

Sessions act a thousand steps ahead, which is not timed; then one client on one connection posts the transitions in batches of 100, and
waits for each acknowledgement: decoded, checked one by one, folded into skill transitions and in Redis. Then what task inference on the
largest context costs, in this process.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.skillet_service import SkilletService, act_body, observation_of
from clients.sdk import HttpTransport
from service.policies import Networks
from training.contract.bundle import Bundle

AHEAD, BATCH = 1000, 100
_JSON = {"content-type": "application/json"}


def batches_of(path: str, observation: list[float]) -> list[tuple[str, bytes]]:
    """Path and body of each batch for one session."""
    outcome = {"episode": 0, "reward": 0.0, "next_observation": observation, "terminated": False, "truncated": False}
    steps = [range(first, first + BATCH) for first in range(0, AHEAD, BATCH)]
    return [(f"{path}/transitions", json.dumps({"transitions": [{**outcome, "step": step} for step in each]}).encode()) for each in steps]


def ingest(bundle: Path, sessions: int) -> tuple[float, float, float]:
    """Acknowledged transitions per second, and median and 99th percentile of a batch in milliseconds."""
    observation = observation_of(bundle)
    with ExitStack() as stack:
        service = SkilletService(bundle, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ingest-"))), stack)
        transport = HttpTransport(f"http://127.0.0.1:{service.port}")
        batches = []
        for _ in range(sessions + 1):
            path = service.open_session()
            for step in range(AHEAD):
                transport.request("POST", f"{path}/act", (act_body(observation) % step).encode(), _JSON, 30.0)
            batches.append(batches_of(path, observation))
        times = []
        for path, body in (batch for session in batches for batch in session):
            began = time.perf_counter()
            reply = transport.request("POST", path, body, _JSON, 30.0)
            times.append(time.perf_counter() - began)
            if json.loads(reply.body).get("accepted") != BATCH:
                raise RuntimeError(reply.body.decode())
        transport.close()
    times = times[len(batches[0]) :]  # the first session warms up
    return BATCH * len(times) / sum(times), 1e3 * statistics.median(times), 1e3 * float(np.quantile(times, 0.99))


def infer(bundle: Path) -> float:
    """Median time of task inference on the largest context, in milliseconds."""
    networks = Networks(Bundle.load(bundle))
    rows = np.random.default_rng(0).standard_normal((networks.spec.max_context, networks.layout.width)).astype(np.float32)
    times = []
    for _ in range(60):
        began = time.perf_counter()
        networks.infer_task(rows)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[10:])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/maze"), help="a bundle's folder (default: %(default)s)")
    parser.add_argument("--sessions", type=int, default=20, help="each brings a thousand transitions (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    per_s, p50_ms, p99_ms = ingest(options.bundle, options.sessions)
    infer_ms = infer(options.bundle)
    print(f"acknowledged transitions/s in batches of {BATCH}: {per_s:,.0f} (a batch {p50_ms:.2f} ms, 99th percentile {p99_ms:.2f} ms)")
    print(f"task inference on the largest context of {options.bundle.name}: {infer_ms:.2f} ms")
    if options.json:
        found = {"transitions_per_s": per_s, "batch_p50_ms": p50_ms, "batch_p99_ms": p99_ms, "inference_ms": infer_ms}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
