"""What one request costs the client: ``python -m benchmarks.client_transport [--requests N]``.

A bare ASGI application answers each request with the same action, so that nearly all of the time is the client's own and the
machine's. Prints the median and the 95th percentile in milliseconds: a raw socket (the floor), the SDK's transport, urllib3 (a pool
manager, and the pool of one host), and the SDK's whole `step`, which encodes, checks and decodes as well.
"""

import argparse
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3

from benchmarks.processes import free_port, started, uvicorn
from clients.sdk import HttpTransport, Session, SkilletClient
from clients.sdk.models import SessionInfo, parse

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
    "gaps": [],
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

    def raw_socket() -> object:
        raw.sendall(request)
        reply = raw.recv(65536)
        while not reply.endswith(b"}"):  # uvicorn sends head and body each on its own; what is left would be the next call's reply
            reply += raw.recv(65536)
        return reply

    return {
        "raw socket": raw_socket,
        "SDK transport": lambda: transport.request("POST", "/x", body, json_type, 5.0),
        "urllib3 pool of one host": lambda: pool.urlopen("POST", "/x", body, json_type, retries=False, timeout=5.0).data,
        "urllib3 pool manager": lambda: manager.request("POST", f"{url}/x", body=body, headers=json_type, retries=False, timeout=5.0).data,
        "SDK session.step": lambda: session.step(0.0, [0.1, 0.2, 0.3, 0.4], False, False),
    }


def measure(call: Callable[[], object], requests: int) -> tuple[float, float]:
    """Median and 95th percentile of one call in milliseconds, after a tenth of the calls as warm-up."""
    times = []
    for _ in range(requests + requests // 10):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    times = sorted(times[requests // 10 :])
    return 1e3 * times[len(times) // 2], 1e3 * times[int(0.95 * len(times))]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    requests = parser.parse_args().requests
    with server() as port:
        for name, call in ways(port).items():
            median_ms, tail_ms = measure(call, requests)
            sys.stdout.write(f"{name:30s} median {median_ms:.3f} ms  95th percentile {tail_ms:.3f} ms\n")


if __name__ == "__main__":
    main()
