"""Small real servers on loopback that behave as a test says."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Exchange"], None]


class Exchange(BaseHTTPRequestHandler):
    """One request; `answers` and `seen` are put in by `http_server`."""

    protocol_version = "HTTP/1.1"
    answers: list[Answer]
    seen: list[tuple[str, str, Any]]
    headers_seen: list[dict[str, str]]

    def handle_any(self):
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.seen.append((self.command, self.path, body))
        self.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        answer = self.answers[min(len(self.seen), len(self.answers)) - 1]  # the last one goes on answering
        answer(self)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any

    def reply(self, status: int, content: Any, content_type: str = "application/json"):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def http_server(*answers: Answer) -> Iterator[tuple[str, type[Exchange]]]:
    handler = type("ScriptedExchange", (Exchange,), {"answers": list(answers), "seen": [], "headers_seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(status: int, content: Any, content_type: str = "application/json") -> Answer:
    return lambda exchange: exchange.reply(status, content, content_type)


def refuses(status: int, code: str, **fields: Any) -> Answer:
    problem = {"title": code, "status": status, "code": code, "detail": f"refused with {code}", **fields}
    return says(status, problem, "application/problem+json")


def lists(*names: str) -> Answer:
    """The bundles of these names."""
    return says(200, {"bundles": [{"name": name, "digest": "ab" * 32, "env_id": "tiny/Env-v0"} for name in names]})


def cut_in_body(exchange: Exchange) -> None:
    """Promises 500 bytes, sends 7 and hangs up."""
    exchange.send_response(200)
    exchange.send_header("content-type", "application/json")
    exchange.send_header("content-length", "500")
    exchange.end_headers()
    exchange.wfile.write(b'{"epis')
    hang_up(exchange)


def hang_up(exchange: Exchange) -> None:
    """Closes without a reply."""
    exchange.close_connection = True
    exchange.wfile.flush()
    exchange.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def raw_server(answer: bytes) -> Iterator[int]:
    """Answers whatever comes on the first connections with ``answer`` and hangs up. Yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


ACTION = {
    "episode": 0,
    "step": 0,
    "action": [0.25, -0.5],
    "skill_step": 0,
    "policy_version": 7,
    "task_version": 3,
    "phase": "exploring",
    "episode_over": False,
    "replayed": False,
}
SPECS = {
    "env_id": "tiny/Env-v0",
    "observation": {"names": ["w", "x", "y", "z"], "units": ["m", "m", "m/s", "rad"], "low": [-1] * 4, "high": [1] * 4},
    "action": {"names": ["left", "right"], "units": ["N", "N"], "low": [-1, -1], "high": [1, 1]},
    "skill_dim": 3,
    "skill_horizon": 5,
    "task_embedding_dim": 2,
    "max_context": 8,
    "episode_steps": 20,
    "control_period_s": 0.05,
}
SESSION = {
    "session_id": "s-1",
    "bundle": {"name": "tiny", "digest": "ab" * 32},
    "seed": 0,
    "phase": "exploring",
    "forced_phase": None,
    "conditioning_episodes": 2,
    "exploration": "prior",
    "finetuning": True,
    "deterministic": False,
    "episode": None,
    "step": 0,
    "episode_open": False,
    "episodes_completed": 0,
    "gaps": [],
    "pending_rewards": [],
    "context_size": 0,
    "task_version": 0,
    "policy_version": 0,
    "created_at": "2026-01-01T00:00:00Z",
    "expires_at": "2026-01-02T00:00:00Z",
    "closed": False,
    "share_skills": False,
    "specs": SPECS,
}
EPISODE = {"episode": 0, "phase": "exploring", "ended_previous": None}
