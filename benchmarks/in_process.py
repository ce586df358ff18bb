"""What a call costs an API process itself: ``python -m benchmarks.in_process [--calls N]``.

uvicorn's protocol and the application run here, on a transport that is no socket; only Redis is another process. So what other work on the
machine does to three processes that wait for one another is left out, and the fastest of many calls is much the same from run to run.
Prints the fastest call, the 10th percentile, the median and the mean in microseconds, from the request's bytes to the reply's last byte.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from uvicorn import Config
from uvicorn.server import ServerState

from benchmarks.servers.decoder import BUNDLE
from benchmarks.skillet_service import act_body, observation_of, step_body
from service.api_worker import config_of
from service.app import create_app
from service.redis_server import EmbeddedRedis
from service.settings import Settings
from training.contract.bundle import Bundle
from training.contract.exploration import Exploration

IN_TURN = 30
PLANNING = "Skillet step, exploring by novelty"
"""One step of ten plans a skill, the others only carry what the session has seen."""


class Wire(asyncio.Transport):
    """Bytes go in to a server's protocol, and its reply comes out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        config.load()
        protocol: Any = config.http_protocol_class
        self._protocol = protocol(config=config, server_state=ServerState(), app_state={}, _loop=asyncio.get_running_loop())
        self._protocol.connection_made(self)

    async def post(self, path: str, body: str) -> tuple[float, Any]:
        """Seconds that it took, and the reply's content."""
        self._came, self._whole = b"", asyncio.get_running_loop().create_future()
        data = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        started = time.perf_counter()
        self._protocol.data_received(data)
        ended = await self._whole
        head, _, content = self._came.partition(b"\r\n\r\n")
        if head[9:11] != b"20":
            raise RuntimeError(self._came.decode())
        return ended - started, json.loads(content)

    def write(self, data: Any) -> None:
        """Of the protocol: some of the reply."""
        self._came += data
        if self._came.endswith(b"}") and b"\r\n\r\n" in self._came:
            self._whole.set_result(time.perf_counter())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Of the protocol: there is no peer."""
        return default

    def is_closing(self) -> bool:
        """Of the protocol: never."""
        return False


async def measure(bundle: Path, redis_url: str, calls: int) -> dict[str, list[float]]:
    """Seconds of each call, by row; the rows in turn, in blocks."""
    from benchmarks.servers.floor import app as floor
    from benchmarks.servers.plain_fastapi import app as plain

    settings = Settings(bundles=(bundle,), redis_url=redis_url)
    app, observation = create_app(settings), observation_of(bundle)
    served = {name: Wire(Config(each, http="httptools", lifespan="off", log_config=None)) for name, each in (("f", floor), ("p", plain))}
    async with app.router.lifespan_context(app):
        wire = Wire(config_of(app, settings))

        offered = Bundle.load(bundle).manifest.explorations

        async def opened(exploration: Exploration = Exploration.BELIEF) -> str:
            asked = json.dumps({"conditioning_episodes": 10000, "exploration": exploration if exploration in offered else None})
            session = (await wire.post("/v1/sessions", asked))[1]
            path = f"/v1/sessions/{session['session_id']}"
            await wire.post(f"{path}/episodes", "{}")
            return path

        act, step = act_body(observation), step_body(observation)
        stepping = await opened()
        await wire.post(f"{stepping}/act", act % 0)
        names = ["bare ASGI", "plain FastAPI", "Skillet act", "Skillet step"]
        if plans := Exploration.NOVELTY in offered:
            names.append(PLANNING)
            planning = await opened(Exploration.NOVELTY)
            await wire.post(f"{planning}/act", act % 0)
        times: dict[str, list[float]] = {name: [] for name in names}
        for first in range(0, calls, IN_TURN):
            acting = await opened()
            block = [
                ("bare ASGI", served["f"], "/act", act, 0),
                ("plain FastAPI", served["p"], "/act", act, 0),
                ("Skillet act", wire, f"{acting}/act", act, 0),
                ("Skillet step", wire, f"{stepping}/step", step, first),
            ]
            if plans:
                block.append((PLANNING, wire, f"{planning}/step", step, first))
            for name, over, path, body, begin in block:
                times[name] += [(await over.post(path, body % number))[0] for number in range(begin, begin + IN_TURN)]
    return times


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.in_process", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("bundles/maze"), help="a bundle's folder (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=1500, help="of each row (default: %(default)s)")
    options = parser.parse_args()
    os.environ[BUNDLE] = str(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        redis = EmbeddedRedis(Path(folder))
        process = redis.spawn()
        try:
            times = uvloop.run(measure(options.bundle, redis.url, options.calls))
        finally:
            process.terminate()
            process.wait()
            redis.close()
    for name, values in times.items():
        values.sort()
        fastest, tenth, median = (1e6 * values[index] for index in (0, len(values) // 10, len(values) // 2))
        mean = 1e6 * sum(values) / len(values)
        print(f"{name:34s} fastest {fastest:5.0f} us  10th percentile {tenth:5.0f} us  median {median:5.0f} us  mean {mean:5.0f} us")


if __name__ == "__main__":
    main()
