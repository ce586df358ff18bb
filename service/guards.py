"""What a fine-tuned version must pass before a robot acts with it. Part of the learner: knows torch."""

import numpy as np
import torch

from service.errors import PolicyOutputInvalid
from service.policies import Networks, PolicyWeights
from training.contract.context import Floats
from training.finetuning import Finetuner

PARITY_TOLERANCE = 1e-4
LIMITED_SHARE = 0.5
"""A version of whose actions the envelope would change more than this is not served."""

PARITY_STATES = 64
"""How many of the newest states the graph and the learner's network are compared in."""


def find_fault(finetuner: Finetuner, weights: PolicyWeights, networks: Networks, states: Floats, kl_limit: float) -> str | None:
    """Why the version must not be served, or None. ``states`` [N, S] are ones that the session has been in."""
    for name, array in weights.arrays().items():
        if not np.isfinite(array).all():
            return f"{name} has weights that are not finite"
    kl = finetuner.policy_kl()
    if not kl <= kl_limit:
        return f"the KL to the skill prior is {kl:.3g} nats, above the limit of {kl_limit:g}"
    try:
        difference = parity(finetuner, weights, networks, states)
    except ValueError as error:
        return f"the weights are not those of the graph: {error}"
    if not difference <= PARITY_TOLERANCE:
        return f"the graph with these weights differs from the learner's network by {difference:.3g}, more than {PARITY_TOLERANCE:g}"
    if not (limited := limited_share(finetuner, weights, networks, states)) <= LIMITED_SHARE:
        return f"the safety envelope would change {limited:.0%} of its actions, more than {LIMITED_SHARE:.0%}"
    return None


def limited_share(finetuner: Finetuner, weights: PolicyWeights, networks: Networks, states: Floats) -> float:
    """Share of the newest states [N, S] in which the action of the mean skill is outside the envelope's range (1 for one not finite)."""
    policy, embedding = networks.with_weights(weights, version=0), finetuner.task_embedding.numpy()
    try:
        actions = [networks.decode(state, policy.choose_skill(state, embedding, None, use_skill_prior=False)) for state in states]
    except PolicyOutputInvalid:
        return 1.0
    return float(np.mean([bool(networks.guard.limit(action, None)[1]) for action in actions])) if actions else 0.0


@torch.no_grad()
def parity(finetuner: Finetuner, weights: PolicyWeights, networks: Networks, states: Floats) -> float:
    """Largest difference between the graph as the API would run it and the learner's own network, over ``states`` [N, S]."""
    policy = networks.with_weights(weights, version=0)
    embeddings = np.repeat(finetuner.task_embedding.numpy()[None], len(states), 0)
    wanted = finetuner.networks.policy(torch.from_numpy(states), torch.from_numpy(embeddings))
    found = policy.graph.run(states, embeddings)
    return max(float(np.abs(got - want.numpy()).max(initial=0.0)) for got, want in zip(found, wanted, strict=True))
