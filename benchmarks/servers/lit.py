"""LitServe: ``python -m benchmarks.servers.lit PORT``, in an environment that has it."""

import sys
from typing import Any

import litserve

from benchmarks.servers.decoder import Decoder


class DecoderAPI(litserve.LitAPI):
    """Runs the decoder in LitServe's one worker."""

    def setup(self, device: str) -> None:
        """Load the graph."""
        self._decoder = Decoder()

    def decode_request(self, request: dict[str, Any]) -> list[float]:
        """The observation."""
        return list(request["observation"])

    def predict(self, observation: list[float]) -> list[float]:
        """The action."""
        return self._decoder(observation)

    def encode_response(self, action: list[float]) -> dict[str, list[float]]:
        """As JSON."""
        return {"action": action}


if __name__ == "__main__":
    server = litserve.LitServer(DecoderAPI(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
