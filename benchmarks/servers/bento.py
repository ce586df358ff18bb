"""BentoML: ``bentoml serve benchmarks.servers.bento:ActionService --port PORT``, in an environment that has it."""

import bentoml

from benchmarks.servers.decoder import Decoder


@bentoml.service(workers=1)
class ActionService:
    """Runs the decoder in BentoML's one worker."""

    def __init__(self) -> None:
        self._decoder = Decoder()

    @bentoml.api
    def act(self, episode: int, step: int, observation: list[float]) -> dict[str, list[float]]:
        """The action for one step."""
        return {"action": self._decoder(observation)}
