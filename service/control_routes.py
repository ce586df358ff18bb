"""The calls of a control loop: act, step, post transitions."""

import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from service import schemas
from service.openapi import documented
from service.parts import parts_of
from service.wire import intact, read, reply

_TRANSITION_EXAMPLE = {
    "episode": 0,
    "step": 0,
    "reward": 0.0,
    "next_observation": [0.1, -0.2, 0.0, 0.3],
    "terminated": False,
    "truncated": False,
}


class DirectRoute(APIRoute):
    """A route of the control loop: FastAPI documents it, but its own decoding of arguments (0.1 ms) is left out."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Call the endpoint with the request and the session's id, nothing else."""

        async def handler(request: Request) -> Response:
            answer: Response = await self.endpoint(request, request.path_params["session_id"])
            return answer

        return handler


control = APIRouter(prefix="/v1/sessions", tags=["control loop"], default_response_class=Response, route_class=DirectRoute)


@control.post("/{session_id}/step", openapi_extra=documented(schemas.Action, request=schemas.Transition, example=_TRANSITION_EXAMPLE))
async def step(request: Request, session_id: str) -> Response:
    """Store the outcome of a step and give the next action."""
    started, parts = time.perf_counter(), parts_of(request)
    arrived_ms = parts.deadlines.clock_ms()
    outcome = await read(request, schemas.Transition)
    answer = await parts.loop.step(session_id, outcome, parts.deadlines.read(request, session_id, arrived_ms))
    parts.metrics.step_seconds.observe(time.perf_counter() - started)
    return reply(answer)


@control.post(
    "/{session_id}/steps",
    openapi_extra=documented(schemas.Action, request=schemas.PostTransitions, example={"transitions": [_TRANSITION_EXAMPLE]}),
)
async def steps(request: Request, session_id: str) -> Response:
    """Store the outcomes of steps whose actions the robot decoded itself, and give the action after them."""
    started, parts = time.perf_counter(), parts_of(request)
    arrived_ms = parts.deadlines.clock_ms()
    outcomes = await read(request, schemas.PostTransitions)
    answer = await parts.loop.steps(session_id, outcomes, parts.deadlines.read(request, session_id, arrived_ms))
    parts.metrics.step_seconds.observe(time.perf_counter() - started)
    return reply(answer)


@control.post(
    "/{session_id}/act",
    openapi_extra=documented(
        schemas.Action, request=schemas.Act, example={"episode": 0, "step": 0, "observation": _TRANSITION_EXAMPLE["next_observation"]}
    ),
)
async def act(request: Request, session_id: str) -> Response:
    """Give the action for one step."""
    started, parts = time.perf_counter(), parts_of(request)
    arrived_ms = parts.deadlines.clock_ms()
    asked = await read(request, schemas.Act)
    answer = await parts.loop.act(session_id, asked, parts.deadlines.read(request, session_id, arrived_ms))
    parts.metrics.act_seconds.observe(time.perf_counter() - started)
    return reply(answer)


@control.post("/{session_id}/episodes/end", openapi_extra=documented(schemas.EpisodeEnded))
async def end_episode(request: Request, session_id: str) -> Response:
    """End an open episode as truncated, without starting another."""
    await intact(request)
    return reply(await parts_of(request).loop.end_episode(session_id))


@control.post(
    "/{session_id}/rewards",
    openapi_extra=documented(
        schemas.RewardsPosted, request=schemas.PostRewards, example={"rewards": [{"episode": 0, "step": 0, "reward": 1.0}]}
    ),
)
async def post_rewards(request: Request, session_id: str) -> Response:
    """Store rewards of transitions that were sent without one."""
    return reply(await parts_of(request).loop.add_rewards(session_id, await read(request, schemas.PostRewards)))


@control.post(
    "/{session_id}/transitions",
    openapi_extra=documented(schemas.TransitionsPosted, request=schemas.PostTransitions, example={"transitions": [_TRANSITION_EXAMPLE]}),
)
async def post_transitions(request: Request, session_id: str) -> Response:
    """Store the outcomes of acted steps."""
    started, parts = time.perf_counter(), parts_of(request)
    answer = await parts.loop.add_transitions(session_id, await read(request, schemas.PostTransitions))
    parts.metrics.transitions_seconds.observe(time.perf_counter() - started)
    return reply(answer)
