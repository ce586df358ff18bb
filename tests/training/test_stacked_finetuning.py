import copy

import numpy as np
import pytest
import torch

from tests.training.test_finetuning import episode
from training.finetuning import Finetuner
from training.stacked_finetuning import FinetunerStack, update_together


def make_learners(exported):
    """Three learners of different tasks: one fresh, one of other data, one that has made steps already."""
    learners = [Finetuner.from_bundle(exported, np.array([0.3 * seed, -0.7], np.float32), seed) for seed in range(3)]
    learners[2].add_episode(episode(9, reward=1.0))
    learners[2].update(learners[2].updates_due())
    for seed, learner in enumerate(learners):
        learner.add_episode(episode(seed, reward=float(seed > 0)))
    return learners


def everything(learner):
    optimizers = learner.optimizers().values()
    moments = [value for o in optimizers for entries in o.state_dict()["state"].values() for value in entries.values()]
    return [*learner.networks.state_dict().values(), *moments]


@pytest.fixture
def pair(exported):
    """The same learners twice."""
    return make_learners(exported), make_learners(exported)


def test_stacked_updates_take_each_learner_where_it_would_have_gone_alone(pair):
    together, alone = pair
    assert sorted(learner.updates_due() for learner in together) == [3, 6, 6]
    before = [copy.deepcopy(learner.networks.policy.net[0].weight) for learner in together]
    update_together(together)
    for learner in alone:
        learner.update(learner.updates_due())
    for ours, theirs, was in zip(together, alone, before, strict=True):
        assert (ours.updates, ours.updates_due(), ours.episodes) == (theirs.updates, 0, theirs.episodes)
        assert torch.equal(ours.generator.get_state(), theirs.generator.get_state())
        for left, right in zip(everything(ours), everything(theirs), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(ours.networks.policy.net[0].weight, was, atol=1e-4)


def test_a_learner_goes_the_same_way_in_any_company(pair):
    three, others = pair
    update_together(three)
    update_together(others[:2])
    for left, right in zip(everything(three[0]), everything(others[0]), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_learners_that_owe_nothing_are_left_alone(pair):
    learners, _ = pair
    learners[0].owed = 0
    before = [value.clone() for value in everything(learners[0])]
    update_together(learners)
    assert all(torch.equal(left, right) for left, right in zip(before, everything(learners[0]), strict=True))


def test_a_stack_leaves_its_learners_alone_until_it_hands_back(pair):
    learners, _ = pair
    before = learners[0].networks.policy.net[0].weight.clone()
    stack = FinetunerStack(learners)
    stack.step()
    assert torch.equal(learners[0].networks.policy.net[0].weight, before)
    stack.hand_back()
    assert not torch.equal(learners[0].networks.policy.net[0].weight, before)
