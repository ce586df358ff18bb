"""A plain stateless service: FastAPI with pydantic models in and out, and ONNX Runtime."""

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.servers.decoder import Decoder


class Observation(BaseModel):
    """What came."""

    episode: int
    step: int
    observation: list[float]


class Action(BaseModel):
    """What to do."""

    episode: int
    step: int
    action: list[float]


app = FastAPI()
decoder = Decoder()


@app.post("/act")
async def act(observation: Observation) -> Action:
    """Give the action for one step."""
    return Action(episode=observation.episode, step=observation.step, action=decoder(observation.observation))
