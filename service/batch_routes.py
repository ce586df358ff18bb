"""`POST /v1/act` and `POST /v1/step`: one request for many sessions."""

import logging
import time

import msgspec
from fastapi import APIRouter, Request, Response

from service import schemas
from service.batches import Answer, Batches, Item
from service.doors import caller_of
from service.errors import ServiceError
from service.faults import Outages, as_problem
from service.framing import request_id
from service.openapi import documented
from service.parts import parts_of
from service.wire import read, reply

_log = logging.getLogger(__name__)
_outages = Outages()
batches = APIRouter(prefix="/v1", tags=["control loop"], default_response_class=Response)
_ACT = {"session_id": "0" * 32, "episode": 0, "step": 0, "observation": [0.1, -0.2, 0.0, 0.3]}
_STEP = {key: value for key, value in _ACT.items() if key != "observation"} | {
    "reward": 0.0,
    "next_observation": [0.1, -0.2, 0.0, 0.3],
    "terminated": False,
    "truncated": False,
}


@batches.post("/act", openapi_extra=documented(schemas.ManyResults, request=schemas.ActMany, example={"items": [_ACT]}))
async def act_many(request: Request) -> Response:
    """Give the actions for one step of each of many sessions."""
    return await _answer(request, (await read(request, schemas.ActMany)).items)


@batches.post("/step", openapi_extra=documented(schemas.ManyResults, request=schemas.StepMany, example={"items": [_STEP]}))
async def step_many(request: Request) -> Response:
    """Store the outcomes of one step of each of many sessions, and give their next actions."""
    return await _answer(request, (await read(request, schemas.StepMany)).items)


async def _answer(request: Request, items: "list[schemas.ActOf] | list[schemas.TransitionOf]") -> Response:
    parts, started = parts_of(request), time.perf_counter()
    wanted: list[Item] = [*items]
    answers = await _let_in(request, wanted)
    seconds = parts.metrics.act_many_seconds if isinstance(items[0], schemas.ActOf) else parts.metrics.step_many_seconds
    seconds.observe(time.perf_counter() - started)
    pairs = enumerate(zip(wanted, answers, strict=True))
    return reply(schemas.ManyResults([_result(request, index, item, answer) for index, (item, answer) in pairs]))


async def _let_in(request: Request, items: list[Item]) -> list[Answer]:
    """The answers to the items whose sessions the caller may drive; to the others what the call alone would have got."""
    parts, caller = parts_of(request), caller_of(request)
    answers: dict[int, Answer] = {}
    for index, item in enumerate(items):
        call = "act" if isinstance(item, schemas.ActOf) else "step"
        try:
            parts.doors.check(caller, "POST", f"/v1/sessions/{item.session_id}/{call}")
        except ServiceError as error:
            answers[index] = error
    allowed = [index for index in range(len(items)) if index not in answers]
    found = await Batches(parts.loop).answer([items[index] for index in allowed])
    answers.update(zip(allowed, found, strict=True))
    return [answers[index] for index in range(len(items))]


def _result(request: Request, index: int, item: Item, answer: Answer) -> schemas.ManyResult:
    if isinstance(answer, schemas.Action):
        return schemas.ManyResult(item.session_id, 200, answer, None)
    problem = as_problem(answer, _outages)
    parts_of(request).metrics.errors.labels(problem.code).inc()
    number = f"{request_id(request.scope)}.{index}"
    if problem.status == 500:
        _log.error("item %s: %s", number, problem.detail, exc_info=None if isinstance(answer, ServiceError) else answer)
    return schemas.ManyResult(
        item.session_id, problem.status, None, msgspec.convert(problem.problem(number), schemas.Problem, strict=False)
    )
