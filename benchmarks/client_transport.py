"""What one request costs the client: ``python -m benchmarks.client_transport [--rounds N]``.

A bare ASGI application answers each request with the same action, so that nearly all of the time is the client's own and the
machine's. Prints the median and the 99th percentile in milliseconds: a raw socket (the floor), the SDK's transport, urllib3 (a pool
manager, and the pool of one host), and the SDK's whole `step`, which encodes, checks and decodes as well. The ways take turns.

A server whose next request comes a little later has gone to sleep by then, and has to be woken up. So a raw socket that does nothing for
as long as the SDK's `step` computes between two requests is measured too: what is left between the two is not the SDK's computing.
"""

import argparse
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3

from benchmarks.processes import free_port, started, uvicorn
from benchmarks.stream import figures, measure
from clients.sdk import HttpTransport, Session, SkilletClient
from clients.sdk.http_wire import Reply
from clients.sdk.models import SessionInfo, parse

FLOOR = "raw socket"
OUTCOME = {"episode": 0, "step": 0, "reward": 0.0, "next_observation": [0.1, 0.2, 0.3, 0.4], "terminated": False, "truncated": False}
VECTOR = {"names": ["w", "x", "y", "z"], "units": ["m"] * 4, "low": [-1] * 4, "high": [1] * 4}
SESSION = {
    "session_id": "s",
    "bundle": {"name": "b", "digest": ""},
    "seed": 0,
    "phase": "exploring",
    "forced_phase": None,
    "conditioning_episodes": 0,
    "exploration": "prior",
    "finetuning": False,
    "deterministic": False,
    "episode": 0,
    "step": 1,
    "episode_open": True,
    "episodes_completed": 0,
    "gaps": [0],
    "pending_rewards": [],
    "share_skills": False,
    "context_size": 0,
    "task_version": 0,
    "policy_version": 0,
    "created_at": "",
    "expires_at": "",
    "closed": False,
    "specs": {
        "env_id": "e",
        "observation": VECTOR,
        "action": VECTOR,
        "skill_dim": 1,
        "skill_horizon": 1,
        "task_embedding_dim": 1,
        "max_context": 1,
        "episode_steps": 1,
        "control_period_s": 1.0,
    },
}


@contextmanager
def server() -> Iterator[int]:
    """Run `benchmarks.servers.floor` in a process of its own. Yields its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, started(uvicorn("benchmarks.servers.floor:app", port), port, log=Path(folder) / "log"):
        yield port


def ways(port: int) -> dict[str, Callable[[], object]]:
    """The clients compared, by name."""
    body, json_type, url = json.dumps(OUTCOME).encode(), {"content-type": "application/json"}, f"http://127.0.0.1:{port}"
    request = (
        f"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    )
    raw = socket.create_connection(("127.0.0.1", port))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport, manager, pool = HttpTransport(url), urllib3.PoolManager(), urllib3.HTTPConnectionPool("127.0.0.1", port)
    session = Session(SkilletClient(url), parse(SessionInfo, SESSION))

    def raw_socket() -> bytes:
        raw.sendall(request)
        reply = raw.recv(65536)
        while not reply.endswith(b"}"):  # uvicorn sends head and body each on its own; what is left would be the next call's reply
            reply += raw.recv(65536)
        return reply

    computing_s = computing(Reply(200, {}, raw_socket().partition(b"\r\n\r\n")[2]))

    def raw_socket_later() -> bytes:
        until = time.perf_counter() + computing_s
        while time.perf_counter() < until:
            pass
        return raw_socket()

    return {
        FLOOR: raw_socket,
        f"raw socket, {1e6 * computing_s:.0f} us later": raw_socket_later,
        "SDK transport": lambda: transport.request("POST", "/x", body, json_type, 5.0),
        "urllib3 pool of one host": lambda: pool.urlopen("POST", "/x", body, json_type, retries=False, timeout=5.0).data,
        "urllib3 pool manager": lambda: manager.request("POST", f"{url}/x", body=body, headers=json_type, retries=False, timeout=5.0).data,
        "SDK session.step": lambda: session.step(0.0, [0.1, 0.2, 0.3, 0.4], False, False),
    }


class _Nowhere:
    """A transport that has the reply already."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def request(self, *_: object) -> Reply:
        return self._reply

    def close(self) -> None:
        pass


def computing(reply: Reply, calls: int = 2000) -> float:
    """Median time in seconds of a `step` that goes nowhere: what the SDK computes itself."""
    session, times = Session(SkilletClient("http://127.0.0.1", transport=_Nowhere(reply)), parse(SessionInfo, SESSION)), []
    for _ in range(calls):
        started = time.perf_counter()
        session.step(0.0, [0.1, 0.2, 0.3, 0.4], False, False)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.client_transport", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="of a block of calls for each way (default: %(default)s)")
    rounds = parser.parse_args().rounds
    with server() as port:
        for name, each in figures(measure(ways(port), rounds), FLOOR).items():
            sys.stdout.write(f"{name:30s} median {each['p50_ms']:.3f} ms  99th percentile {each['p99_ms']:.3f} ms\n")


if __name__ == "__main__":
    main()
