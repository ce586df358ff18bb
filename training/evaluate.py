"""The whole target-task protocol offline (SiMPL, section 4.3): condition, encode, act, fine-tune, for tasks x seeds side by side."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.config import TrainingConfig
from training.contract.belief import Belief, Following
from training.contract.context import ContextLayout, Floats, select_context
from training.contract.errors import ConfigError
from training.contract.exploration import (
    DETOUR_SKILLS,
    EpisodePlan,
    Exploration,
    Phase,
    automatic_phase,
    detour_after,
    embedding_beyond,
    exploratory_embedding,
    in_turn,
    plan_episode,
    skill_noise,
    turns,
)
from training.contract.novelty import WAYS, Novelty, Places, goes_back_at_once, overdue, ways_to_rewards
from training.contract.spec import ModelSpec
from training.finetuning import Finetuner
from training.meta_learner import MetaNetworks
from training.networks.meta_policy import MetaPolicy
from training.replay import SkillEpisode
from training.rollout import Acting, Choice, TaskSimulator, rollout
from training.stacked_finetuning import update_together


@dataclass
class TargetSession:
    """One target task: its context so far, its learner once it has one."""

    task: Any
    seed: int
    policy: MetaPolicy
    context: list[Floats] = field(default_factory=list)
    rewarded: bool = False
    following: Following | None = None
    places: Places | None = None
    beyond_from: int = -1
    """From which skill on its newest episode did not act by what it knows; -1: in no part of it."""
    learner: Finetuner | None = None
    returns: list[float] = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Environment steps of each episode."""
    deterministic_returns: dict[int, float] = field(default_factory=dict)
    """By the number of episodes before: the return of one that acts with the mean skill, the posterior's mean, and leaves no trace."""


class TargetProtocol:
    """Runs sessions in lock-step with the rules that the service follows (`training.contract.exploration`).

    ``new_learner`` makes the learner of a task embedding [E] and a seed; None: nothing is fine-tuned.
    """

    def __init__(
        self,
        config: TrainingConfig,
        networks: MetaNetworks,
        spec: ModelSpec,
        simulator: TaskSimulator,
        new_learner: Callable[[Floats, int], Finetuner] | None,
        belief: Belief | None = None,
    ) -> None:
        exploration = config.evaluate.exploration
        if (exploration.takes_turns and belief is None) or (exploration is Exploration.NOVELTY and belief and not belief.novelty):
            raise ConfigError(
                f"evaluate.exploration is {exploration.value!r}, and there is nothing to explore so with: choose another here, "
                "e.g. 'switching'"
            )
        self.belief, self.goes_beyond = belief, belief is not None and config.finetuning.infer_again
        self.goes_back = exploration is Exploration.NOVELTY
        self.takes_detours = self.goes_beyond and config.finetuning.detours and new_learner is not None
        self.config, self.networks, self.spec, self.simulator, self.new_learner = config, networks, spec, simulator, new_learner
        self.layout = ContextLayout(spec.state_dim, spec.skill_dim)

    def begin(self, tasks: Sequence[Any], seeds: Sequence[int]) -> list[TargetSession]:
        """A session of every task with every seed."""
        return [TargetSession(task, seed, self.networks.policy) for seed in seeds for task in tasks]

    def advance(self, sessions: list[TargetSession], episode: int) -> dict[str, float]:
        """Episode number ``episode`` (from 0) of every session, and what they learn from it. Returns mean returns.

        All of its randomness derives from its number and the seeds: sessions that are restored after any episode go on as they would have.
        """
        self._episode(sessions, episode, np.random.default_rng([self.config.seed, *dict.fromkeys(s.seed for s in sessions), episode]))
        if self.new_learner is not None:
            self._learn(sessions, episode + 1)
        metrics = {"return": float(np.mean([s.returns[-1] for s in sessions]))}
        every = self.config.evaluate.deterministic_every
        if every and (episode + 1) % every == 0 and episode + 1 >= self.config.evaluate.conditioning_episodes:
            metrics["deterministic_return"] = self._evaluate(sessions, episode + 1)
        return metrics

    def _evaluate(self, sessions: list[TargetSession], episodes: int) -> float:
        """One deterministic episode of each session, which it does not remember. Returns their mean return."""
        rng = np.random.default_rng([self.config.seed, episodes])
        embeddings = torch.from_numpy(np.stack([self._adapted_embedding(session) for session in sessions]))
        results = self._roll(sessions, Acting.by_policy(embeddings, deterministic=True), rng)
        for session, result in zip(sessions, results, strict=True):
            session.deterministic_returns[episodes] = result.episode_return
        return float(np.mean([result.episode_return for result in results]))

    def _roll(self, sessions: list[TargetSession], acting: Acting, rng: np.random.Generator) -> list[SkillEpisode]:
        return rollout(
            self.simulator,
            [s.task for s in sessions],
            [s.policy for s in sessions] if any(s.learner for s in sessions) else self.networks.policy,
            self.networks.skills.decoder,
            acting,
            horizon=self.spec.skill_horizon,
            layout=self.layout,
            rng=rng,
        )[0]

    def _episode(self, sessions: list[TargetSession], episode: int, rng: np.random.Generator) -> None:
        for session in sessions:
            if session.rewarded and self.goes_back:
                session.places = self._novelty.with_route(ways_to_rewards(session.context[-WAYS:], self.layout))
        plans = [self._plan(session, episode) for session in sessions]
        known = [self._known_embedding(plan, session) for plan, session in zip(plans, sessions, strict=True)]

        exploration = self.config.evaluate.exploration
        beyond = np.array([session.rewarded and self._goes_back_at_once(session) for session in sessions])
        for session in sessions:
            session.beyond_from = -1
        detours = [self._detour_after(session, episode) for session in sessions]
        left = np.full(len(sessions), DETOUR_SKILLS)  # skills of its detour that are to come

        def choose(skill_index: int, states: Floats, active: NDArray[np.intp], earned: Floats) -> Choice:
            chosen, planned = np.zeros((len(sessions), self.spec.task_embedding_dim), np.float32), dict[int, Floats]()
            for index in active:
                session, inferred = sessions[index], known[index]
                if retraces := self.goes_back and session.rewarded:
                    session.places = self._novelty.on_the_way(session.places, states[index], skill_index=skill_index)
                    beyond[index] |= overdue(session.places, skill_index, earned=earned[index])
                beyond[index] |= self.goes_beyond and exploration.nothing_left(earned=earned[index], returns=session.returns)
                if beyond[index] and session.beyond_from < 0:
                    session.beyond_from = skill_index
                on_detour = left[index] > 0 and not beyond[index] and (left[index] < DETOUR_SKILLS or earned[index] >= detours[index])
                left[index] -= on_detour
                if on_detour:
                    planned[index] = self._by_prior(session, states[index], episode, skill_index)
                elif beyond[index] and retraces:
                    planned[index] = self._novelty.retrace(session.places, states[index], **self._choice(session, episode, skill_index))
                elif self.belief is not None and beyond[index]:
                    chosen[index] = embedding_beyond(self.belief, seed=session.seed, episode=episode, skill_index=skill_index)
                elif inferred is not None:
                    chosen[index] = in_turn(inferred, skill_index)
                elif exploration is Exploration.NOVELTY:
                    planned[index] = self._planned(session, states[index], episode, skill_index)
                else:
                    chosen[index] = self._explored(session, states[index], episode, skill_index, plain=plans[index].use_skill_prior)
            return Choice(torch.from_numpy(chosen), beyond.copy(), planned)

        plain, temperature = torch.tensor([plan.use_skill_prior for plan in plans]), self.config.evaluate.skill_temperature
        acting = Acting(torch.zeros(0), plain, temperature=temperature, redraw=choose, base=self.networks.policy)
        episodes = self._roll(sessions, acting, rng)
        for session, result in zip(sessions, episodes, strict=True):
            session.context.append(result.rows)
            session.rewarded |= bool((result.rows[:, self.layout.reward] != 0).any())
            session.returns.append(result.episode_return)
            session.successes.append(result.success)
            session.steps.append(result.steps)

    def _planned(self, session: TargetSession, state: Floats, episode: int, skill_index: int) -> Floats:
        """The skill [Z] of a session that explores by novelty and has no reward yet."""
        before = session.places or self._novelty.begin()
        skill, session.places = self._novelty.plan(before, state, **self._choice(session, episode, skill_index))
        return skill

    def _detour_after(self, session: TargetSession, episode: int) -> float:
        """What the session's episode has earned when it takes a detour; infinity: it takes none."""
        config = self.config.evaluate
        after = detour_after(
            config.exploration, seed=session.seed, episode=episode, conditioning_episodes=config.conditioning_episodes,
            returns=session.returns, completed=[s and r > 0 for s, r in zip(session.successes, session.returns, strict=True)],
        )  # fmt: skip
        return np.inf if after is None or not self.takes_detours else after

    @torch.no_grad()
    def _by_prior(self, session: TargetSession, state: Floats, episode: int, skill_index: int) -> Floats:
        """The skill [Z] that the plain skill prior draws in ``state`` [S]."""
        mean, std = self.networks.skills.prior(torch.from_numpy(state[None]))
        noise = skill_noise(session.seed, episode, skill_index * self.spec.skill_horizon, self.spec.skill_dim)
        return (mean[0].numpy() + std[0].numpy() * noise).astype(np.float32)

    def _goes_back_at_once(self, session: TargetSession) -> bool:
        has_route = self.goes_back and session.places is not None and len(session.places.route) > 0
        return has_route and goes_back_at_once(session.beyond_from)

    @property
    def _novelty(self) -> Novelty:
        assert self.belief is not None
        assert self.belief.novelty is not None
        return self.belief.novelty

    def _choice(self, session: TargetSession, episode: int, skill_index: int) -> dict[str, int]:
        """Which choice of a skill a plan is for."""
        return {"seed": session.seed, "episode": episode, "skill_index": skill_index, "skill_dim": self.spec.skill_dim}

    def _explored(self, session: TargetSession, state: Floats, episode: int, skill_index: int, *, plain: bool) -> Floats:
        """The embedding [E] that is not inferred, for one skill; of the ``plain`` skill prior, which looks at none."""
        dim = self.spec.task_embedding_dim
        if plain:
            return np.zeros(dim, np.float32)
        embedding, session.following = exploratory_embedding(
            self.config.evaluate.exploration, self.belief, session.following, state, seed=session.seed, episode=episode,
            skill_index=skill_index, conditioning_episodes=self.config.evaluate.conditioning_episodes, rewarded=session.rewarded,
            task_embedding_dim=dim,
        )  # fmt: skip
        return embedding

    def _plan(self, session: TargetSession, episode: int) -> EpisodePlan:
        config = self.config.evaluate
        phase = self._phase(session, episode)
        asks = config.exploration.asks_posterior(phase, episode=episode, rewarded=session.rewarded)
        posterior = self._posterior(session) if asks else None
        return plan_episode(
            phase,
            seed=session.seed,
            episode=episode,
            conditioning_episodes=config.conditioning_episodes,
            task_embedding_dim=self.spec.task_embedding_dim,
            exploration=config.exploration,
            rewarded=session.rewarded,
            posterior=posterior,
            candidates=None if posterior is None else self._candidates(session, episode, *posterior),
        )

    def _candidates(self, session: TargetSession, episode: int, mean: Floats, scale: Floats) -> Floats | None:
        """Embeddings [n, E] of the posterior (mean and scale [E]) that take turns; None where none do (`Exploration.takes_turns`)."""
        if self.belief is None or not self.config.evaluate.exploration.takes_turns:
            return None
        spec = self.spec
        rows = np.concatenate(session.context)
        rewarded = rows[rows[:, self.layout.reward] != 0][:, self.layout.next_state]
        count = turns(spec.episode_steps, spec.skill_horizon)
        return self.belief.candidates(mean, scale, rewarded, seed=session.seed, episode=episode, count=count)

    def _phase(self, session: TargetSession, episode: int) -> Phase:
        conditioning = self.config.evaluate.conditioning_episodes
        return automatic_phase(episode, conditioning, rewarded=session.rewarded, finetuned=session.learner is not None)

    def _known_embedding(self, plan: EpisodePlan, session: TargetSession) -> Floats | None:
        """The embeddings [n, E] that the episode's skills take in turn, mostly one; None where they are drawn on the way."""
        if not plan.inferred:
            return None
        embedding = plan.task_embedding if plan.task_embedding is not None else self._adapted_embedding(session)
        return np.atleast_2d(embedding)

    def _adapted_embedding(self, session: TargetSession) -> Floats:
        return self._posterior(session)[0] if session.learner is None else session.learner.task_embedding.numpy()

    @torch.no_grad()
    def _posterior(self, session: TargetSession) -> tuple[Floats, Floats]:
        """Mean and scale [E] of the task posterior of all complete episodes."""
        rows = np.concatenate(session.context) if session.context else np.zeros((0, self.layout.width), np.float32)
        chosen = torch.from_numpy(select_context(rows, self.layout, self.spec.max_context))[None]
        mean, scale = self.networks.encoder(chosen, torch.ones(chosen.shape[:2]))
        return mean[0].numpy(), scale[0].numpy()

    def _learn(self, sessions: list[TargetSession], episodes: int) -> None:
        """What the service's learner does when an episode, number ``episodes`` from 1, is complete."""
        for session in sessions:
            if self._phase(session, episodes) is not Phase.EXPLORING:
                self._take_in(session)
        update_together([session.learner for session in sessions if session.learner is not None])

    def _take_in(self, session: TargetSession) -> None:
        """Let the learner learn from the newest episode; make one, which learns from all episodes, where there is none yet."""
        if session.learner is None:
            self._start_learner(session, session.context)
        elif session.learner.add_episode(session.context[-1]):
            session.learner.task_embedding = torch.from_numpy(self._posterior(session)[0])

    def _start_learner(self, session: TargetSession, episodes: Sequence[Floats]) -> None:
        assert self.new_learner is not None
        session.learner = self.new_learner(self._posterior(session)[0], session.seed)
        session.policy = session.learner.networks.policy
        for rows in episodes:
            session.learner.add_episode(rows)


def write_results(sessions: Sequence[TargetSession], path: Path) -> NDArray[np.float64]:
    """Each session's returns and successes as JSON. Returns the returns [sessions, episodes]."""
    content = [
        {
            "task": list(s.task),
            "seed": s.seed,
            "returns": s.returns,
            "successes": s.successes,
            "deterministic_returns": s.deterministic_returns,
        }
        for s in sessions
    ]
    path.write_text(json.dumps(content) + "\n")
    return np.array([s.returns for s in sessions], np.float64)
