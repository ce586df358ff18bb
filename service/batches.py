"""Many sessions at once: their decoders in one call of the graph, their saves in one round trip. Each result is what the call alone would
have got, to the bit.

Skills are chosen one by one: in a batch, the meta-policy's standard deviations differ in their last bits (`docs/decisions.md`).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service import acting, recording, schemas
from service.errors import ServiceError
from service.observations import check_observation
from service.policies import MetaPolicy, Networks
from service.session_state import Changes, Loaded
from service.step_loop import StepLoop, acted
from training.contract.context import Floats, unpack_vector

Item = schemas.ActOf | schemas.TransitionOf
Call = tuple[str, schemas.Act | schemas.Transition]
"""A session's id and what is asked of it."""
Answer = schemas.Action | Exception


@dataclass(slots=True)
class Begun:
    """A call with its answer, which holds once the session is saved."""

    loaded: Loaded
    networks: Networks
    changes: Changes = field(default_factory=Changes)
    answer: schemas.Action | None = None
    step: int = 0
    state: Floats | None = None
    skill: Floats | None = None


class Batches:
    """Acting and stepping for many sessions at once."""

    def __init__(self, loop: StepLoop) -> None:
        self._loop = loop

    async def answer(self, items: Sequence[Item]) -> list[Answer]:
        """One action or error for each item, in their order.

        What is out of the ordinary (a second item of the same session, a session that another process changed, whatever is refused) goes
        alone, after the others.
        """
        begun = self.begin([(item.session_id, item) for item in items])
        saved = self.save(begun)()
        self.count([each for each, done in zip(begun, saved, strict=True) if each is not None and done])
        return [
            each.answer if each is not None and each.answer is not None and done else await self._alone(item)
            for item, each, done in zip(items, begun, saved, strict=True)
        ]

    def begin(self, calls: Sequence[Call]) -> list[Begun | None]:
        """Conclude answers from what this process knows, without waiting for anything but Redis; None for calls that have to go alone.

        redis.RedisError goes up as it is.
        """
        firsts: dict[str, int] = {}
        for index, (session_id, _) in enumerate(calls):
            firsts.setdefault(session_id, index)
        found: list[Loaded | None] = [None] * len(calls)
        for index, loaded in zip(firsts.values(), self._loop.store.recall_many([*firsts]), strict=True):
            found[index] = loaded
        begun = [self._apply(loaded, request) for loaded, (_, request) in zip(found, calls, strict=True)]
        self._decode(begun)
        return [each if each is not None and each.answer is not None else None for each in begun]

    def save(self, begun: Sequence[Begun | None]) -> Callable[[], list[bool]]:
        """Send what is to be saved; what it returns waits, says of each call whether its answer holds, and is to be called."""
        finish = self._loop.store.send_saves([(each.loaded, each.changes) for each in begun if each is not None])

        def wait() -> list[bool]:
            saved = iter(finish())
            return [each is not None and next(saved) for each in begun]

        return wait

    def count(self, saved: Sequence[Begun]) -> None:
        """Count what was answered, and start what follows from it."""
        self._loop.all_grew([(each.loaded, each.changes, each.networks) for each in saved])
        for each in saved:
            if each.answer is not None:
                self._loop.counted(each.answer)

    def _apply(self, loaded: Loaded | None, request: schemas.Act | schemas.Transition) -> Begun | None:
        """The rules of `StepLoop.act` and `StepLoop.step` up to the decoder."""
        if loaded is None:
            return None
        try:
            networks = self._loop.networks(loaded)
            if not loaded.recalled:
                self._loop.policies.prepare(loaded, networks)
            each = Begun(loaded, networks)
            self._conclude(each, request, self._loop.policies.at_hand(loaded, networks, acting.wanted_version))
        except (ServiceError, LookupError):
            return None  # alone, it gets the error that tells of it, or waits for its policy
        return each

    def _conclude(self, each: Begun, request: schemas.Act | schemas.Transition, policy: MetaPolicy | None) -> None:
        session, networks, settings = each.loaded.session, each.networks, self._loop.settings
        if isinstance(request, schemas.Act):
            recording.check_episode(session, request.episode)
            each.step, each.state = request.step, check_observation(request.observation, networks, "$.observation")
        else:
            outcome = recording.check_outcome(request, networks, "$")
            status = recording.place(session, request, outcome, each.changes, networks, settings.reorder_window)
            if status == "duplicate":
                recording.check_newest(session, request.step)
            if not session.episode_open or recording.ended_at(session) is not None:
                each.answer = acting.over(session, request.step + 1, replayed=status == "duplicate")
                return
            each.step, each.state = request.step + 1, unpack_vector(outcome.next_state)
        due = acting.begin_act(session, each.step, each.state, networks=networks, policy=policy, max_ahead=settings.max_steps_ahead)
        if isinstance(due, schemas.Action):
            each.answer = due
        else:
            each.skill = due

    def _decode(self, begun: Sequence[Begun | None]) -> None:
        groups: dict[int, list[tuple[Begun, Floats, Floats]]] = defaultdict(list)
        for each in begun:
            if each is not None and each.state is not None and each.skill is not None:
                groups[id(each.networks)].append((each, each.state, each.skill))
        for group in groups.values():
            networks = group[0][0].networks
            actions = networks.decode_many([(state, skill) for _, state, skill in group])
            for (each, state, _), wanted in zip(group, actions, strict=True):
                if wanted is None:
                    continue  # not finite: alone, it gets the error that tells of it
                each.answer = acting.finish_act(each.loaded.session, each.step, state, wanted, networks)
                each.changes.events.append(acted(each.loaded.session, each.answer, state, networks.spec.skill_horizon))

    async def _alone(self, item: Item) -> Answer:
        try:
            if isinstance(item, schemas.ActOf):
                return await self._loop.act(item.session_id, item)
            return await self._loop.step(item.session_id, item)
        except Exception as error:  # told in the item's result
            return error
