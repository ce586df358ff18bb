"""The target-task protocol on tiny networks and worlds, and watching what it chooses."""

from dataclasses import replace
from functools import partial

from tests.training.tiny import TINY_SPEC, world_config
from tests.training.worlds import TwoSidedWorld
from training import evaluate
from training.evaluate import TargetProtocol
from training.finetuning import Finetuner

TASKS, SEEDS, K, EPISODES = [(1,), (-1,)], (0, 1, 2), 3, 7


def watch_choices(monkeypatch, watch):
    """Have ``watch(choice, acting, policies, skill_index, states, active)`` called at each choice of skills; what it returns is done."""
    rollout = evaluate.rollout

    def watched(simulator, tasks, policies, decoder, acting, **options):
        def redraw(skill_index, states, active, earned):
            return watch(acting.redraw(skill_index, states, active, earned), acting, policies, skill_index, states, active)

        return rollout(simulator, tasks, policies, decoder, replace(acting, redraw=redraw), **options)

    monkeypatch.setattr(evaluate, "rollout", watched)


def run_sessions(exported, networks, world=None, finetuning=True, belief=None, detours=False, **changed):
    sections = {"finetuning": world_config().finetuning.model_dump() | {"detours": detours}}
    sections |= {"belief": {"particles": 2, "dynamics_updates": 1}} if belief else {}
    config = world_config(evaluate={"conditioning_episodes": K, "episodes": EPISODES} | changed, **sections)
    new_learner = partial(Finetuner.from_bundle, exported) if finetuning else None
    protocol = TargetProtocol(config, networks, TINY_SPEC, world or TwoSidedWorld(), new_learner, belief)
    sessions = protocol.begin(TASKS, SEEDS)
    for episode in range(config.evaluate.episodes):
        protocol.advance(sessions, episode)
    return sessions
