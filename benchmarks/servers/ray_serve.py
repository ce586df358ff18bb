"""Ray Serve: ``python -m benchmarks.servers.ray_serve PORT``, in an environment that has it."""

import os
import signal
import sys

os.environ.setdefault("RAY_raylet_start_wait_time_s", "100")  # a busy machine takes longer than the default of 30; read on import

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.servers.decoder import Decoder


@serve.deployment
class ActionService:
    """Runs the decoder in Ray Serve's one replica."""

    def __init__(self) -> None:
        self._decoder = Decoder()

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        """The action for one step."""
        return {"action": self._decoder((await request.json())["observation"])}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(ActionService.bind(), route_prefix="/act")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    ray.shutdown()
