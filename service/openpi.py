"""openpi's policy protocol, for robots that have its client: at ``/`` and ``/openpi``, where that client connects.

On connecting the service sends metadata; then each observation that comes, a map with numpy arrays, gets a map with ``actions`` [1, A]. One
session a connection: a new one with the options of the address's query, or the one that ``?session_id=`` names. What openpi's protocol
has no word for, the observation may have beside its state: ``reward``, ``terminated`` and ``truncated`` of the last action, and
``reset``. A client that sends observations alone has rewards of 0 and episodes of the bundle's length. A ``reset`` shows nothing of where
the last action led; what it was worth counts all the same, with the observation before in place of the one that never came.
"""

import asyncio
import json
import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from service import numpy_frames, schemas
from service.doors import caller_of
from service.errors import InvalidObservation, ServiceError, Unauthorized
from service.faults import Outages, as_problem
from service.observations import check_observation
from service.opening import create
from service.parts import Parts
from service.policies import Networks
from service.session_errors import ConcurrentUpdate, Conflict, Gone
from service.session_state import Loaded
from service.stream import REFUSED, UNSUPPORTED_DATA, same_origin
from service.views import finite
from training.contract.context import unpack_vector

STATE_KEYS: Final = ("observation/state", "observation.state", "state", "observation")
_ENDS: Final = ("terminated", "truncated")
_OWN_KEYS: Final = frozenset({*STATE_KEYS, "reward", *_ENDS, "reset"})
_log = logging.getLogger(__name__)
_outages = Outages()
openpi = APIRouter()


@openpi.websocket("/")
@openpi.websocket("/openpi")
async def policy(websocket: WebSocket) -> None:
    """Speak with one client of openpi's until it leaves."""
    if not same_origin(websocket):
        await websocket.close()  # before it is accepted: HTTP 403
        return
    await websocket.accept()
    robot = _Robot(websocket)
    try:
        await robot.run()
    except WebSocketDisconnect:
        return


@dataclass(frozen=True)
class _Observation:
    """What a message says: where the last action led, and what it was worth. ``unknown``: names that have no meaning here."""

    state: list[float]
    reward: float
    terminated: bool
    truncated: bool
    reset: bool
    unknown: list[str]

    @classmethod
    def of(cls, message: dict[str, Any]) -> "_Observation":
        """Read a message. Raises InvalidObservation or InvalidRequest."""
        key = next((key for key in STATE_KEYS if key in message), None)
        if key is None:
            raise InvalidObservation(
                "the observation has no state", expected=list(STATE_KEYS), received=sorted(message)[:20], action="Name the state so."
            )
        state, reward = numpy_frames.vector(message[key], key), numpy_frames.number(message.get("reward", 0.0), "reward")
        terminated, truncated, reset = (numpy_frames.flag(message.get(name, False), name) for name in (*_ENDS, "reset"))
        return cls(state, reward, terminated, truncated, reset, [name for name in message if name not in _OWN_KEYS])

    @property
    def told(self) -> list[str]:
        """The names of what it says of the last action."""
        return [name for name in ("reward", *_ENDS) if getattr(self, name)]


class _Robot:
    """One connection. ``_step`` is the step whose action the robot has; None: no episode, the next observation begins one.

    ``_state``: the last observation that was answered. ``_unsure``: the service failed to answer the last one, and may have stored what it
    says.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._parts: Parts = websocket.app.state.parts
        self._caller = caller_of(websocket)
        self._name = secrets.token_hex(8)
        self._session_id, self._episode = "", 0
        self._step: int | None = None
        self._state: list[float] = []
        self._unsure = False

    async def run(self) -> None:
        """Send metadata, then answer observations until the connection ends."""
        try:
            loaded = self._open()
            networks = self._parts.loop.networks(loaded)
        except Exception as error:
            await self._refuse(error, closes=True)
            return
        self._session_id = loaded.session.session_id
        await self._websocket.send_bytes(numpy_frames.pack(_metadata(loaded, networks)))
        while (message := await self._websocket.receive())["type"] == "websocket.receive":
            if (data := message.get("bytes")) is None:
                await self._websocket.close(UNSUPPORTED_DATA, "expected binary messages with msgpack")
                return
            started = time.perf_counter()
            try:
                answer, ignored = await self._infer(numpy_frames.unpack(data), networks)
            except Exception as error:
                if await self._refuse(error):
                    return
                continue
            took_ms = (time.perf_counter() - started) * 1000
            await self._websocket.send_bytes(numpy_frames.pack(_reply(answer, sorted(ignored), took_ms, networks.spec.action_dim)))

    def _open(self) -> Loaded:
        query = dict(self._websocket.query_params)
        if (session_id := query.get("session_id")) is not None:
            self._check(session_id)
            return self._parts.store.load(session_id)
        try:
            return create(self._parts, msgspec.convert(query, schemas.OpenSession, strict=False), None, self._caller)
        except msgspec.ValidationError as error:
            raise numpy_frames.misfit("the address's query", "options of a session", str(error)) from error

    def _check(self, session_id: str) -> None:
        """Whether the client may (still) drive this session. Raises as `Doors.check`."""
        self._parts.doors.check(self._caller, "POST", f"/v1/sessions/{session_id}/step")

    async def _infer(self, message: dict[str, Any], networks: Networks) -> tuple[schemas.Action, list[str]]:
        """The action for an observation, after what it says of the last action has been stored; and the names that have no meaning here."""
        self._check(self._session_id)
        seen = _Observation.of(message)
        if self._step is None or (seen.reset and not seen.told):
            unused = [] if self._unsure else seen.told  # after a failure: it may have been stored before beginning failed
            return await self._begin(seen.state, networks), seen.unknown + unused
        if seen.reset:
            check_observation(seen.state, networks, "state")  # before anything is stored
        led_to = self._state if seen.reset else seen.state
        reported = schemas.Transition(self._episode, self._step, seen.reward, led_to, seen.terminated, seen.truncated)
        action = await self._report(reported, networks, reset=seen.reset)
        if action is None:
            return await self._begin(seen.state, networks), seen.unknown + seen.told
        long_enough = action.episode_over and not seen.terminated and not seen.truncated
        if seen.reset or long_enough:
            return await self._begin(seen.state, networks), seen.unknown
        self._state = seen.state
        return action, seen.unknown

    async def _report(self, reported: schemas.Transition, networks: Networks, *, reset: bool) -> schemas.Action | None:
        """Store the outcome of the last action; the next action. None where there is nothing to store it for, and an episode begins.

        ``reset``: an episode begins in any case, so somebody else's end of the last one is no reason to refuse it.
        """
        outcome = self._due(reported, networks, ends=reset)
        if outcome is None:
            return None
        try:
            action = await self._parts.loop.step(self._session_id, outcome)
        except Conflict as error:
            if not reset or isinstance(error, ConcurrentUpdate):
                raise
            return None
        self._step = None if action.episode_over else action.step
        return action

    def _due(self, reported: schemas.Transition, networks: Networks, *, ends: bool) -> schemas.Transition | None:
        """The outcome to store for what the robot reports of its last action; None: that ended its episode, and this begins the next.

        ``ends``: the episode ends with it, whatever it says.

        After a failure it looks up whether the last report was stored. If so, the robot has had no action since: the same report is the
        same outcome again, with a newer observation; another one is the outcome of the action that did not arrive.
        """
        most_steps = 0 if ends else networks.spec.episode_steps
        due = _limited(reported, most_steps)
        if not self._unsure:
            return due
        check_observation(reported.next_observation, networks, "state")  # which may be answered without being stored
        session = self._parts.store.load(self._session_id).session
        self._unsure = False
        stored = session.last_outcome
        if session.episode != reported.episode or stored is None or stored.step != reported.step:
            return due
        repeated = (due.reward, due.terminated) == (stored.reward, stored.terminated) and stored.truncated in (
            due.truncated,
            reported.truncated,  # a reset after it, and not with it
        )
        if repeated or (not session.episode_open and (reported.terminated or reported.truncated)):
            state = unpack_vector(stored.next_state).tolist()
            return schemas.Transition(session.episode, stored.step, stored.reward, state, stored.terminated, stored.truncated)
        if not session.episode_open:
            return None
        self._step = stored.step + 1
        return _limited(msgspec.structs.replace(reported, step=self._step), most_steps)

    async def _begin(self, state: list[float], networks: Networks) -> schemas.Action:
        """Begin an episode with this observation; one that is open ends as truncated."""
        check_observation(state, networks, "state")  # before anything is begun
        loop = self._parts.loop
        self._step = None
        self._episode = (await loop.start_episode(self._session_id)).episode
        action = await loop.act(self._session_id, schemas.Act(self._episode, 0, state))
        self._step, self._state = 0, state
        return action

    async def _refuse(self, error: Exception, *, closes: bool = False) -> bool:
        """Tell of an error as text, which openpi's client raises. Returns whether the connection was closed over it."""
        problem = as_problem(error, _outages)
        self._parts.metrics.errors.labels(problem.code).inc()
        self._unsure = self._unsure or problem.status >= 500
        if problem.status == 500:
            _log.error("openpi %s: %s", self._name, problem.detail, exc_info=None if isinstance(error, ServiceError) else error)
        await self._websocket.send_text(json.dumps(problem.problem(self._name)))
        if closes or isinstance(problem, Gone | Unauthorized):
            await self._websocket.close(REFUSED + problem.status)
            return True
        await asyncio.sleep(0)
        return False


def _limited(outcome: schemas.Transition, most_steps: int) -> schemas.Transition:
    """An outcome, truncated if its episode is long enough."""
    over = not outcome.terminated and outcome.step + 1 >= most_steps
    return msgspec.structs.replace(outcome, truncated=outcome.truncated or over)


def _metadata(loaded: Loaded, networks: Networks) -> dict[str, Any]:
    spec = networks.spec
    return {
        "service": "skillet",
        "session_id": loaded.session.session_id,
        "bundle": loaded.session.bundle,
        "digest": loaded.session.digest,
        "env_id": spec.env_id,
        "observation": finite(spec.observation.model_dump()),
        "action": finite(spec.action.model_dump()),
        "state_keys": list(STATE_KEYS),
        "action_horizon": 1,
        "skill_horizon": spec.skill_horizon,
        "episode_steps": spec.episode_steps,
        "control_period_s": spec.control_period_s,
    }


def _reply(action: schemas.Action, ignored: list[str], took_ms: float, action_dim: int) -> dict[str, Any]:
    """``actions`` is float32 [1, A], and [0, A] after an episode's last observation."""
    values = [] if action.action is None else [action.action]
    return {
        "actions": np.array(values, np.float32).reshape(-1, action_dim),
        **{name: getattr(action, name) for name in ("episode", "step", "skill_step", "policy_version", "task_version", "episode_over")},
        "phase": action.phase.value,
        "skill": action.skill,  # a list: openpi's ActionChunkBroker takes every array for one of as many rows as there are actions
        "limited": action.limited,
        "outside": action.outside,
        "ignored": ignored,
        "server_timing": {"infer_ms": took_ms},
        "policy_timing": {"infer_ms": took_ms},
    }
