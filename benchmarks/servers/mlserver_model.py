"""MLServer, without worker processes: ``python -m benchmarks.servers.mlserver_model PORT``, in an environment that has it."""

import asyncio
import sys

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.servers.decoder import Decoder


class DecoderModel(MLModel):
    """Runs the decoder in the server's process."""

    async def load(self) -> bool:
        """Load the graph."""
        self._decoder = Decoder()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The action for one step."""
        action = self._decoder(list(payload.inputs[0].data))
        output = ResponseOutput(name="action", shape=[1, len(action)], datatype="FP32", data=action)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def serve(port: int) -> None:
    """Until it is told to stop."""
    server = MLServer(Settings(host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2, parallel_workers=0))
    model = ModelSettings(name="decoder", implementation=DecoderModel)
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
