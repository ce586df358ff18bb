"""Many sessions in one request: their decoders in one call of the graph, their saves in one round trip. Each result is what the call alone
would have got, to the bit.

Skills are chosen one by one: in a batch, the meta-policy's standard deviations differ in their last bits (`docs/decisions.md`).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from service import acting, recording, schemas
from service.errors import ServiceError
from service.observations import check_observation
from service.policies import MetaPolicy, Networks
from service.session_state import Changes, Loaded
from service.step_loop import StepLoop, acted
from training.contract.context import Floats, unpack_vector

Item = schemas.ActOf | schemas.TransitionOf
Answer = schemas.Action | Exception


@dataclass
class _Underway:
    """One item, as far as it has come."""

    item: Item
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

        What is out of the ordinary (a second item of the same session, a session that another process changed, a refusal that may only
        be due to an old state) goes alone, after the others.
        """
        answers: dict[int, Answer] = {}
        firsts: dict[str, int] = {}
        for index, item in enumerate(items):
            firsts.setdefault(item.session_id, index)
        underway = await self._begin({index: items[index] for index in firsts.values()}, answers)
        self._decode(underway.values())
        ready = {index: each for index, each in underway.items() if each.answer is not None}
        saved = self._loop.store.save_many([(each.loaded, each.changes) for each in ready.values()])
        for (index, each), done in zip(ready.items(), saved, strict=True):
            if done:
                self._loop.grew(each.loaded, each.changes, each.networks)
                assert each.answer is not None
                answers[index] = self._loop.counted(each.answer)
        for index, item in enumerate(items):
            if index not in answers:
                answers[index] = await self._alone(item)
        return [answers[index] for index in range(len(items))]

    async def _begin(self, items: dict[int, Item], answers: dict[int, Answer]) -> dict[int, _Underway]:
        found = self._loop.store.recall_many([item.session_id for item in items.values()])
        underway = {}
        for (index, item), loaded in zip(items.items(), found, strict=True):
            if loaded is None:
                continue
            try:
                each = _Underway(item, loaded, self._loop.networks(loaded))
                if not loaded.recalled:
                    self._loop.prepare(loaded, each.networks)
                self._apply(each, await self._loop.policy_for(loaded, each.networks, acting.wanted_version))
                underway[index] = each
            except ServiceError as error:
                if not loaded.recalled:
                    answers[index] = error
        return underway

    def _apply(self, each: _Underway, policy: MetaPolicy | None) -> None:
        """The rules of `StepLoop.act` and `StepLoop.step` up to the decoder."""
        session, item, networks = each.loaded.session, each.item, each.networks
        if isinstance(item, schemas.ActOf):
            recording.check_episode(session, item.episode)
            each.step, each.state = item.step, check_observation(item.observation, networks, "$.observation")
        else:
            outcome = recording.check_outcome(item, networks, "$")
            status = recording.place(session, item, outcome, each.changes, networks, self._loop.settings.reorder_window)
            if status == "duplicate":
                recording.check_newest(session, item.step)
            if not session.episode_open or recording.ended_at(session) is not None:
                each.answer = acting.over(session, item.step + 1, replayed=status == "duplicate")
                return
            each.step, each.state = item.step + 1, unpack_vector(outcome.next_state)
        due = acting.begin_act(
            session, each.step, each.state, networks=networks, policy=policy, max_ahead=self._loop.settings.max_steps_ahead
        )
        if isinstance(due, schemas.Action):
            each.answer = due
        else:
            each.skill = due

    def _decode(self, underway: Iterable[_Underway]) -> None:
        groups: dict[int, list[_Underway]] = defaultdict(list)
        for each in underway:
            if each.skill is not None:
                groups[id(each.networks)].append(each)
        for group in groups.values():
            networks = group[0].networks
            states, skills = (np.stack([getattr(each, what) for each in group]) for what in ("state", "skill"))
            for each, wanted in zip(group, networks.decode_many(states, skills), strict=True):
                if each.state is None or not np.isfinite(wanted).all():
                    continue  # alone, it gets the error that tells of it
                session = each.loaded.session
                each.answer = acting.finish_act(session, each.step, each.state, wanted, networks)
                each.changes.events.append(acted(session, each.answer, each.state))

    async def _alone(self, item: Item) -> Answer:
        try:
            if isinstance(item, schemas.ActOf):
                return await self._loop.act(item.session_id, item)
            return await self._loop.step(item.session_id, item)
        except Exception as error:  # told in the item's result
            return error
