"""``python -m benchmarks.overload``: more load than a running service can take, and what becomes of it.

Three phases on one service: one connection alone, which shows what a step takes and so how many the service can do; many connections that
together ask for several times as much (bounded: each has one request under way at a time); and one connection alone again. Prints a tally:
what was answered, what was refused, how long the answered took, whether the service has all that it acknowledged, and how soon it was
itself again.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

EPISODE_STEPS = 25


@dataclass
class Robot:
    """One connection and its session: a control loop that asks as often as it is told to, and counts what was acknowledged."""

    host: str
    port: int
    seed: int
    steps: int = 0
    refused: int = 0
    took_s: list[float] = field(default_factory=list)
    problems: set[str] = field(default_factory=set)
    acting: bool = False  # an episode is open, and its first action is there

    async def open(self) -> None:
        """Connect and open a session."""
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        body = {"seed": self.seed, "finetuning": False, "conditioning_episodes": 1000}
        session = await self.insist("/v1/sessions", body)
        self.path = f"/v1/sessions/{session['session_id']}"
        self.observation = [0.0] * len(session["specs"]["observation"]["names"])

    async def drive(self, every_s: float, until: float) -> None:
        """Ask for a step every ``every_s`` seconds, or as soon as the last reply is there, until the time has come."""
        due = time.monotonic()
        while time.monotonic() < until:
            await self.step()
            due = max(due + every_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def insist(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Ask until the answer is no refusal."""
        while True:
            status, reply = await self.ask("POST", path, body)
            if status < 300:
                return reply
            await asyncio.sleep(0.05)

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """One request. A refusal must be a 503 that says when to come again."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        began = time.monotonic()
        self.writer.write(head.encode() + content)
        received = await self.reader.readuntil(b"\r\n\r\n")
        status, _, headers = received.partition(b"\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in headers.splitlines())}
        reply = json.loads(await self.reader.readexactly(int(fields[b"content-length"])))
        code = int(status.split()[1])
        if code >= 400:
            self.refused += 1
            again = b"retry-after" in fields
            self.problems.add(f"{code} {reply['code']}{'' if again else ' without Retry-After'}")
        else:
            self.took_s.append(time.monotonic() - began)
        return code, reply

    async def step(self) -> None:
        """The next step, at the start of an episode with what comes before it. If it is refused, the next call asks for it again."""
        if not self.acting:
            self.episode = (await self.insist(f"{self.path}/episodes", None))["episode"]
            await self.insist(f"{self.path}/act", {"episode": self.episode, "step": 0, "observation": self.observation})
            self.acting = True
        step = self.steps % EPISODE_STEPS
        last = step == EPISODE_STEPS - 1
        outcome = {"reward": 0.0, "next_observation": self.observation, "terminated": False, "truncated": last}
        status, _ = await self.ask("POST", f"{self.path}/step", {"episode": self.episode, "step": step, **outcome})
        if status == 200:
            self.steps += 1
            self.acting = not last

    async def lost(self) -> int:
        """How many acknowledged steps the service does not have."""
        while True:
            status, session = await self.ask("GET", self.path)
            if status == 200:
                break
            await asyncio.sleep(0.05)
        has = session["episodes_completed"] * EPISODE_STEPS + (session["step"] - 1 if session["episode_open"] else 0)
        return self.steps - has

    async def close(self) -> None:
        """Close the session and the connection."""
        await self.ask("DELETE", self.path)
        self.writer.close()
        await self.writer.wait_closed()


@dataclass(frozen=True)
class Tally:
    """What came of it. Times in milliseconds."""

    alone_ms: float
    capacity: float
    offered: float
    answered: int
    refused: int
    problems: list[str]
    median_ms: float
    p99_ms: float
    slowest_ms: float
    lost: int
    again_ms: float
    refused_afterwards: int

    def __str__(self) -> str:
        return (
            f"overload: a step alone {self.alone_ms:.2f} ms, so about {self.capacity:.0f} a second; offered {self.offered:.0f} a second: "
            f"{self.answered} answered (median {self.median_ms:.1f} ms, 99 % within {self.p99_ms:.1f}, slowest {self.slowest_ms:.1f}), "
            f"{self.refused} refused {self.problems}; acknowledged and lost {self.lost}; "
            f"first step afterwards {self.again_ms:.2f} ms, refused afterwards {self.refused_afterwards}"
        )


async def overload(url: str, *, connections: int, seconds: float, factor: float) -> Tally:
    """Run the three phases, ``factor`` times what the service can do in the second of them."""
    where = urlsplit(url)
    robots = [Robot(where.hostname or "127.0.0.1", where.port or 80, seed) for seed in range(connections)]
    for robot in robots:
        await robot.open()
    alone = robots[0]
    alone.took_s.clear()
    await alone.drive(0.0, time.monotonic() + min(2.0, seconds / 3))
    alone_s = float(np.median(alone.took_s))
    for robot in robots:
        robot.took_s.clear()
    every_s = connections * alone_s / factor
    ends = time.monotonic() + seconds
    await asyncio.gather(*(robot.drive(every_s, ends) for robot in robots))
    took_ms = 1000 * np.array([took for robot in robots for took in robot.took_s])
    refused = sum(robot.refused for robot in robots)
    problems = sorted(set().union(*(robot.problems for robot in robots)))
    before, alone.refused = alone.refused, 0
    alone.took_s.clear()
    for _ in range(20):
        await alone.step()
    afterwards, alone.refused = alone.refused, before
    again_ms = 1000 * alone.took_s[0]
    lost = sum([await robot.lost() for robot in robots])
    for robot in robots:
        await robot.close()
    return Tally(
        alone_s * 1000, 1 / alone_s, factor / alone_s, len(took_ms), refused, problems,
        float(np.median(took_ms)), float(np.percentile(took_ms, 99)), float(took_ms.max()), lost, again_ms, afterwards,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print the tally. Exit code 1 when anything acknowledged was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a running service (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20.0, help="of overload (default: %(default)s)")
    parser.add_argument("--factor", type=float, default=3.0, help="offered load, in what the service can do (default: %(default)s)")
    options = parser.parse_args(arguments)
    tally = asyncio.run(overload(options.url, connections=options.connections, seconds=options.seconds, factor=options.factor))
    print(tally)
    return int(tally.lost != 0)


if __name__ == "__main__":
    sys.exit(main())
