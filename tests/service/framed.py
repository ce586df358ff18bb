"""Speaks `/v1/stream` in tests: frames as plain dicts."""

import hashlib
from typing import Any

import msgspec
from starlette.testclient import TestClient, WebSocketTestSession

from tests.conftest import state, transition


class Framed:
    """One connection, to be used as a context manager."""

    def __init__(self, api: TestClient, *, digests: bool = False, **headers: str) -> None:
        self._digests, self._number = digests, 0
        protocols = ["skillet.v1.digest"] if digests else None
        self._connection = api.websocket_connect("/v1/stream", subprotocols=protocols, headers=headers)

    def __enter__(self) -> "Framed":
        self.socket: WebSocketTestSession = self._connection.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._connection.__exit__(*error)

    def send(self, kind: str, **fields: Any) -> bytes:
        """Send a frame without waiting for its reply. Returns the bytes that were sent."""
        self._number += 1
        data = msgspec.msgpack.encode({"type": kind, "id": self._number, **fields})
        if self._digests:
            data = hashlib.blake2b(data, digest_size=12).digest() + data
        self.socket.send_bytes(data)
        return data

    def read(self) -> Any:
        """The next reply."""
        return msgspec.msgpack.decode(self.socket.receive_bytes())

    def call(self, kind: str, **fields: Any) -> Any:
        """Send a frame and return its whole reply."""
        sent = self.send(kind, **fields)
        if not self._digests:
            reply = self.read()
        else:
            data = self.socket.receive_bytes()
            assert data[:12] == hashlib.blake2b(sent[:12] + data[12:], digest_size=12).digest()
            reply = msgspec.msgpack.decode(data[12:])
        assert reply["id"] == self._number
        assert reply["app_ms"] > 0
        return reply

    def ok(self, kind: str, **fields: Any) -> Any:
        """The body of the reply to a frame that must not be refused."""
        reply = self.call(kind, **fields)
        assert reply["status"] < 400, reply
        return reply["body"]

    def act(self, episode: int, step: int, observation: list[float], **fields: Any) -> Any:
        return self.ok("act", body={"episode": episode, "step": step, "observation": observation}, **fields)

    def step(self, episode: int, step: int, observation: list[float], **outcome: Any) -> Any:
        return self.ok("step", body=transition(episode, step, observation, **outcome))

    def run_episode(self, steps: int = 7, final_reward: float = 0.0) -> list[Any]:
        """As `tests.conftest.Driver.run_episode`."""
        episode = self.ok("start")["episode"]
        replies = [self.act(episode, 0, state(episode, 0))]
        for step in range(steps):
            last = step == steps - 1
            outcome = {"reward": final_reward if last else 0.0, "terminated": last}
            replies.append(self.step(episode, step, state(episode, step + 1), **outcome))
        return replies
