"""What a control step costs over a websocket and with split inference: ``python -m benchmarks.stream [--rounds N] [--json FILE]``.

Client, echo server and service run in processes of their own; the rows are measured in turn, in blocks of 200 calls, so that whatever else
the machine does hits all of them. Every step is a real one: its outcome is in Redis before the reply. Prints median and 99th percentile in
milliseconds, and the median's ratio to the echo with the same client, taken within each round.
"""

import argparse
import itertools
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import websockets.sync.client

from clients.sdk import EdgeSession, HttpTransport, OnnxDecoder, Session, SessionGroup, SkilletClient, SkilletError, Transition
from clients.sdk.stream import Connection

BUNDLE = Path(__file__).parents[1] / "bundles/maze"
BLOCK, WARM_UP, BATCH = 200, 50, 32
ECHO, STEP = "websocket echo", "Skillet /v1/stream step"
Row = Callable[[], object]


async def echo(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """A bare ASGI application that sends each message back."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message["bytes"]})


@contextmanager
def echo_server() -> Iterator[str]:
    """The echo, served as Skillet is. Yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = ["--port", str(port), "--loop", "uvloop", "--ws", "websockets-sansio", "--ws-per-message-deflate", "false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "benchmarks.stream:echo", *options, "--log-level", "error", "--lifespan", "off"]
    )
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def service(bundle: Path) -> Iterator[str]:
    """A service without learners. Yields its address."""
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", "0", "--no-learner", "--data-dir", data]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            found = re.search(r"http://\S+", ready)
            if found is None:
                raise RuntimeError(f"the service did not start: {ready}")
            yield found.group()
        finally:
            process.terminate()
            process.wait()


class Walk:
    """Steps through episodes of a session, so that each call is the next one of a real control loop."""

    def __init__(self, session: Session | EdgeSession, episode_steps: int = 1000) -> None:
        self._session, self._left, self._steps = session, 0, episode_steps
        spec = session.specs.observation
        self.observation = [(low + high) / 2 for low, high in zip(spec.low, spec.high, strict=True)]

    def step(self) -> object:
        """One step through the SDK."""
        if self._left == 0:
            self._session.start_episode()
            self._session.act(self.observation)
            self._left = self._steps
        self._left -= 1
        return self._session.step(0.0, self.observation, False, False)


def batch_row(client: SkilletClient, sessions: int) -> Row:
    """One step of each of many sessions in one request."""
    group = SessionGroup(client, [client.open_session(finetuning=False, seed=seed) for seed in range(sessions)])
    spec = group.sessions[0].specs.observation
    observation = [(low + high) / 2 for low, high in zip(spec.low, spec.high, strict=True)]
    for session in group.sessions:
        session.start_episode()
        session.act(observation)
    outcomes = dict.fromkeys(range(sessions), Transition(0.0, observation, False, False))

    def step() -> object:
        results = group.step(outcomes)
        if any(isinstance(result, SkilletError) for result in results.values()):
            raise RuntimeError(results)
        return results

    return step


def edge_rows(client: SkilletClient) -> dict[str, Row]:
    """Split inference: the whole loop, of which one step in H asks the service; and the steps that are decoded here, alone."""
    session = client.open_session(finetuning=False, share_skills=True)
    decoder = OnnxDecoder.download(client, session.bundle.name)
    state, skill = (np.zeros(dim, np.float32) for dim in (session.specs.observation.dim, session.specs.skill_dim))
    walk = Walk(EdgeSession(session, decoder))
    here = EdgeSession(client.open_session(finetuning=False, share_skills=True), decoder)
    here.start_episode()
    here.act(walk.observation)
    here.specs = replace(here.specs, skill_horizon=2**30)  # never asks
    return {
        "split inference, whole loop": walk.step,
        "split inference, local step": lambda: here.step(0.0, walk.observation, False, False),
        "the decoder alone": lambda: decoder(state, skill),
    }


def raw_echo(url: str) -> Row:
    """The SDK's connection to the echo; a frame is encoded and decoded for each call, as a step is."""
    connection, numbers = Connection(HttpTransport(url), {}, 10.0, "/", ()), itertools.count()
    return lambda: _exchange(connection, _step_frame(next(numbers), [10.0, 10.0, 0.0, 0.0]))


def raw_step(url: str, session: Session) -> Row:
    """The same with the service; the session's first episode goes on without end."""
    connection = Connection(HttpTransport(url), {}, 10.0, subprotocols=())
    walk = Walk(session)
    session.start_episode()
    session.act(walk.observation)
    _exchange(connection, {"type": "attach", "session_id": session.id})
    numbers = itertools.count()

    def step() -> object:
        reply = _exchange(connection, _step_frame(next(numbers), walk.observation))
        if reply["status"] != 200:
            raise RuntimeError(reply["body"])
        return reply

    return step


def threaded_echo(url: str) -> Row:
    """`websockets`' threaded client and the echo."""
    connection = websockets.sync.client.connect(url.replace("http", "ws"), compression=None, legacy=True)
    numbers = itertools.count()

    def call() -> object:
        connection.send(msgspec.msgpack.encode(_step_frame(next(numbers), [10.0, 10.0, 0.0, 0.0])))
        return msgspec.msgpack.decode(connection.recv())

    return call


def _step_frame(step: int, observation: list[float]) -> dict[str, Any]:
    outcome = {"episode": 0, "step": step, "reward": 0.0, "next_observation": observation, "terminated": False, "truncated": False}
    return {"type": "step", "id": step, "body": outcome}


def _exchange(connection: Connection, frame: dict[str, Any]) -> Any:
    connection.send(msgspec.msgpack.encode(frame), stop_at())
    return msgspec.msgpack.decode(connection.receive(stop_at()))


def stop_at() -> float:
    """Until when a call is waited for."""
    return time.monotonic() + 10.0


def measure(rows: dict[str, Row], rounds: int) -> dict[str, list[list[float]]]:
    """Times in seconds by row and round, the rows in turn; warm-up excluded."""
    times: dict[str, list[list[float]]] = {name: [] for name in rows}
    for call in rows.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(rounds):
        for name, call in rows.items():
            block = []
            for _ in range(BLOCK):
                started = time.perf_counter()
                call()
                block.append(time.perf_counter() - started)
            times[name].append(block)
    return times


def figures(times: dict[str, list[list[float]]], baseline: str) -> dict[str, dict[str, float]]:
    """Median and 99th percentile in milliseconds, and the median over the rounds of the ratio of medians to ``baseline``."""
    found = {}
    for name, blocks in times.items():
        every = sorted(1e3 * value for block in blocks for value in block)
        ratios = [statistics.median(block) / statistics.median(base) for block, base in zip(blocks, times[baseline], strict=True)]
        found[name] = {"p50_ms": statistics.median(every), "p99_ms": every[int(0.99 * len(every))], "ratio": statistics.median(ratios)}
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.stream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="a bundle's folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="of a block of calls for each way (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with ExitStack() as stack:
        echo_url, url = stack.enter_context(echo_server()), stack.enter_context(service(options.bundle))
        rest, stream = (stack.enter_context(SkilletClient(url, stream=over)) for over in (False, True))
        rows = {
            ECHO: raw_echo(echo_url),
            STEP: raw_step(url, rest.open_session(finetuning=False)),
            "SDK session.step, stream": Walk(stream.open_session(finetuning=False)).step,
            "SDK session.step, REST": Walk(rest.open_session(finetuning=False)).step,
            f"SDK, {BATCH} sessions in one request": batch_row(rest, BATCH),
            **edge_rows(rest),
            "websocket echo, threaded client": threaded_echo(echo_url),
        }
        found = figures(measure(rows, options.rounds), ECHO)
    for name, row in found.items():
        print(f"{name:34s} median {row['p50_ms']:.3f} ms  p99 {row['p99_ms']:.3f} ms  {row['ratio']:.2f} x echo")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
