"""The application behind the server's own protocols, in a thread: what a test client that calls it in process goes past."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI

from service.api_worker import Server
from service.lane import Lane
from service.settings import Settings


@contextmanager
def served(app: FastAPI, settings: Settings) -> Iterator[tuple[int, Server]]:
    """Yields the port, and the server."""
    server = Server(app, settings, lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield listener.getsockname()[1], server
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@dataclass
class Answered:
    """A reply as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection, on which a test sends what bytes it likes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._came = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def post(self, path: str, body: Any = None, **headers: str) -> Answered:
        """Send in one piece, wait for the reply."""
        self.socket.sendall(request(path, body, **headers))
        return self.answer()

    def answer(self) -> Answered:
        """The next reply."""
        while b"\r\n\r\n" not in self._came:
            self._more()
        head, _, self._came = self._came.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        while len(self._came) < int(headers["content-length"]):
            self._more()
        body, self._came = self._came[: int(headers["content-length"])], self._came[int(headers["content-length"]) :]
        return Answered(int(first.split()[1]), headers, body)

    def closed(self) -> bool:
        """Whether the service closes the connection without another word."""
        return not self._came and self.socket.recv(1) == b""

    def _more(self) -> None:
        data = self.socket.recv(65536)
        assert data, f"the connection ended after {self._came!r}"
        self._came += data


def request(path: str, body: Any = None, **headers: str) -> bytes:
    """A request; ``headers`` by name with ``_`` for ``-``, the length unless it is among them."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    given = {"Host": "127.0.0.1", "Content-Length": str(len(content))}
    given |= {"-".join(part.capitalize() for part in name.split("_")): value for name, value in headers.items()}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return "\r\n".join(lines).encode() + content


def answered_short(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the sessions whose calls were answered the short way, from now on."""
    seen: list[str] = []
    save = Lane._save

    def noted(self: Lane, calls: Any) -> Any:
        saved = save(self, calls)
        seen.extend(call.session_id for call, each in zip(calls, saved, strict=True) if each is not None)
        return saved

    monkeypatch.setattr(Lane, "_save", noted)
    return seen
