"""What a control step costs over what `wrk` does not speak: rows of `benchmarks.serving` that a Python client drives, one connection each.

The floor is the same bare ASGI application as there, asked by a raw socket. Rows are driven in turn, in blocks of calls; ratios are taken
between blocks of one round.
"""

import itertools
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import stream
from benchmarks.skillet_service import SkilletService, act_body, observation_of
from clients.sdk import HttpTransport, SkilletClient
from clients.sdk.stream import Connection
from service import numpy_frames

FLOOR = "bare ASGI, raw socket"
Call = Callable[[], object]


def python_rows(service: SkilletService, floor_port: int, bundle: Path, stack: ExitStack) -> dict[str, tuple[Call, int]]:
    """By name a call, and how many control steps it makes; the floor first."""
    url = f"http://127.0.0.1:{service.port}"
    rest, over_stream = (stack.enter_context(SkilletClient(url, stream=streams)) for streams in (False, True))
    echo = stack.enter_context(stream.echo_server())
    edge = stream.edge_rows(rest)
    return {
        FLOOR: (_raw(floor_port, act_body(observation_of(bundle))), 1),
        "websocket echo": (stream.raw_echo(echo), 1),
        "Skillet websocket step": (stream.raw_step(url, rest.open_session(finetuning=False)), 1),
        "Skillet openpi": (_openpi(url, observation_of(bundle)), 1),
        "Skillet SDK, REST": (stream.Walk(rest.open_session(finetuning=False)).step, 1),
        "Skillet SDK, websocket": (stream.Walk(over_stream.open_session(finetuning=False)).step, 1),
        f"Skillet SDK, B={stream.BATCH}": (stream.batch_row(rest, stream.BATCH), stream.BATCH),
        "Skillet split inference": (edge["split inference, whole loop"], 1),
        "Skillet split inference, local step": (edge["split inference, local step"], 1),
        "Skillet split inference, its decoder alone": (edge["the decoder alone"], 1),
    }


def _raw(port: int, body: str) -> Call:
    connection, steps = socket.create_connection(("127.0.0.1", port)), itertools.count()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call() -> object:
        content = (body % next(steps)).encode()
        connection.sendall(b"POST /act HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        reply = connection.recv(65536)
        while not reply.endswith(b"}"):  # uvicorn sends head and body each on its own
            reply += connection.recv(65536)
        return reply

    return call


def _openpi(url: str, observation: list[float]) -> Call:
    """As openpi's client: its frames, over the SDK's connection. One observation after the other; episodes have the bundle's length."""
    connection = Connection(HttpTransport(url), {}, 10.0, "/openpi?finetuning=false", ())
    message = {"observation/state": np.array(observation, np.float32)}
    connection.receive(stream.stop_at())  # metadata

    def call() -> object:
        connection.send(numpy_frames.pack(message), stream.stop_at())
        reply: dict[str, Any] = msgspec.msgpack.decode(connection.receive(stream.stop_at()))
        return reply["actions"]

    return call
