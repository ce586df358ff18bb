"""The target-task protocol with what a method leaves out of it."""

from collections.abc import Sequence

import numpy as np

from training.config import TrainingConfig
from training.contract.belief import Belief
from training.contract.context import Floats
from training.contract.exploration import Phase
from training.contract.spec import ModelSpec
from training.evaluate import TargetProtocol, TargetSession
from training.finetuning import Finetuner, LearnerNetworks
from training.meta_learner import MetaNetworks
from training.methods.method import Method
from training.rollout import TaskSimulator


class MethodProtocol(TargetProtocol):
    """Sessions of one method in lock-step, all from the same networks and KL coefficient."""

    def __init__(
        self,
        method: Method,
        config: TrainingConfig,
        networks: MetaNetworks,
        coefficient: float,
        spec: ModelSpec,
        simulator: TaskSimulator,
        belief: Belief | None = None,
    ) -> None:
        def new_learner(embedding: Floats, seed: int) -> Finetuner:
            return method.learner(LearnerNetworks.from_meta(networks, config, coefficient), config.finetuning, embedding, seed)

        super().__init__(config, networks, spec, simulator, new_learner if method.finetunes else None, belief)
        self.method = method
        if not method.goes_beyond:
            self.goes_beyond = self.takes_detours = self.goes_back = False

    def _phase(self, session: TargetSession, episode: int) -> Phase:
        if self.method.explores_until_rewarded:
            return super()._phase(session, episode)
        if episode < self.config.evaluate.conditioning_episodes:
            return Phase.EXPLORING
        return Phase.ADAPTED if session.learner is None else Phase.FINETUNING

    def _posterior(self, session: TargetSession) -> tuple[Floats, Floats]:
        if self.method.infers_task:
            return super()._posterior(session)
        dim = self.spec.task_embedding_dim
        return np.zeros(dim, np.float32), np.ones(dim, np.float32)

    def _start_learner(self, session: TargetSession, episodes: Sequence[Floats]) -> None:
        super()._start_learner(session, episodes if self.method.keeps_conditioning else [])
