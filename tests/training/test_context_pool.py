import numpy as np
import pytest
import torch

from tests.training.test_rollout import run
from tests.training.tiny import LAYOUT, E, H, known_skills, world_config
from tests.training.worlds import TwoSidedWorld
from training.context_pool import MOST_EPISODES, Collected, ContextPool
from training.meta_training import MetaTrainer
from training.relabelling import Relabeller
from training.replay import SkillEpisode
from training.rollout import Acting, rollout

RIGHT, LEFT = 0, 1
TASKS = [(1,), (-1,)]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def pool(capacity=100):
    return ContextPool(Relabeller(TwoSidedWorld(end=0.5), TASKS, LAYOUT, H), capacity)


def walk(to, marker=0.0, skills=2):
    """An episode straight to a place, with its path; the last entry of each state is a marker."""
    path = np.zeros((skills * H + 1, LAYOUT.state_dim), np.float32)
    path[:, 0], path[:, -1] = np.linspace(0, to, len(path)), marker
    rows = np.zeros((skills, LAYOUT.width), np.float32)
    rows[:, LAYOUT.state], rows[:, LAYOUT.next_state] = path[:-1:H], path[H::H]
    return SkillEpisode(rows, len(path) - 1, 0.0, False), path


def collected(task, walked):
    episode, path = walked
    return Collected(task, episode.rows, path)


def in_each_task(walked):
    episode, path = walked
    return [each.rows for each in pool().relabeller.all(episode.rows, path)]


def real_rows(context, mask):
    return context[mask.bool()].numpy()


def test_the_same_episode_is_in_each_tasks_context_with_that_tasks_rewards(generator):
    held = pool()
    held.add(collected(LEFT, walk(to=1.0)))
    contexts, masks = held.sample_context([RIGHT, LEFT], 64, generator)
    right, left = (real_rows(context, mask) for context, mask in zip(contexts, masks, strict=True))
    assert right[:, LAYOUT.reward].any()
    assert not left[:, LAYOUT.reward].any()
    assert set(right[:, 0]) <= set(left[:, 0])  # to the right it ends where the reward is


def test_what_is_padded_is_masked_and_nothing_else(generator):
    held = pool()
    held.add(collected(RIGHT, walk(to=0.1, marker=7.0)))
    contexts, masks = held.sample_context([RIGHT, LEFT, RIGHT], 5, generator)
    assert contexts.shape[:2] == masks.shape
    assert contexts.shape[1] <= 5
    assert (contexts[masks.bool()][:, LAYOUT.state_dim - 1] == 7.0).all()
    assert not contexts[~masks.bool()].any()


def test_a_context_holds_one_to_twenty_episodes_a_share_of_them_the_tasks_own(generator):
    held = pool()
    for _ in range(50):
        held.add(collected(LEFT, walk(to=0.1, marker=1.0)))
    held.add(collected(RIGHT, walk(to=0.1, marker=2.0)))
    sizes, own = [], []
    for _ in range(300):
        rows = real_rows(*(part[0] for part in held.sample_context([RIGHT], 10_000, generator)))
        sizes.append(len(rows) // 2)
        own.append(float((rows[:, LAYOUT.state_dim - 1] == 2.0).mean()))
    assert min(sizes) == 1
    assert max(sizes) == MOST_EPISODES
    assert min(own) == 0.0
    assert max(own) == 1.0
    assert np.mean(own) == pytest.approx(0.5, abs=0.1)  # of 51 episodes one is the task's own


def test_half_of_the_contexts_hold_demonstrations_a_share_of_them_those_that_earn_most_in_the_task(generator):
    held = pool()
    held.add(collected(LEFT, walk(to=0.1, marker=1.0)))
    held.add(collected(RIGHT, walk(to=0.1, marker=1.0)))
    held.demonstrate([[in_each_task(walk(to=1.0, marker=2.0))], [in_each_task(walk(to=-1.0, marker=3.0))] * 9])
    demonstrated, own = [], []
    for _ in range(400):
        markers = real_rows(*(part[0] for part in held.sample_context([RIGHT], 10_000, generator)))[:, LAYOUT.state_dim - 1]
        demonstrated.append(float((markers != 1.0).mean()))
        own.append(float((markers == 2.0).sum() / max(1, (markers != 1.0).sum())))
    assert np.mean(np.array(demonstrated) > 0) == pytest.approx(0.5 * 0.8, abs=0.1)  # a small share of few episodes is often none
    assert max(demonstrated) > 0.9
    assert np.mean([share for share, some in zip(own, demonstrated, strict=True) if some]) == pytest.approx(0.5, abs=0.1)


def test_demonstrations_bring_the_rewards_of_what_the_policy_has_not_learned(generator):
    held = pool()
    held.add(collected(RIGHT, walk(to=0.1)))
    held.demonstrate([[in_each_task(walk(to=1.0))], [in_each_task(walk(to=-1.0))]])
    rewarded = np.zeros(2)
    for _ in range(100):
        contexts, masks = held.sample_context([RIGHT, LEFT], 64, generator)
        rewarded += [real_rows(context, mask)[:, LAYOUT.reward].any() for context, mask in zip(contexts, masks, strict=True)]
    assert (rewarded > 20).all()


def test_rewarded_rows_take_at_most_half_where_there_are_others(generator):
    held = pool()
    for _ in range(20):
        held.add(collected(LEFT, walk(to=1.0, skills=1)))  # nothing but a rewarded row, to the right
        held.add(collected(LEFT, walk(to=0.1, skills=4)))
    for _ in range(100):
        rows = real_rows(*(part[0] for part in held.sample_context([RIGHT], 8, generator)))
        hits = int((rows[:, LAYOUT.reward] != 0).sum())
        assert hits <= max(4, 8 - (len(rows) - hits))


def test_the_oldest_episodes_go_first(generator):
    held = pool(capacity=3)
    for marker in range(1, 6):
        held.add(collected(LEFT, walk(to=0.1, marker=float(marker))))
    assert held.size(RIGHT) == 3
    seen = {float(value) for _ in range(50) for value in real_rows(*held.sample_context([RIGHT], 100, generator))[:, LAYOUT.state_dim - 1]}
    assert seen == {3.0, 4.0, 5.0}


def test_a_pooled_episode_equals_an_honest_one_in_the_other_task():
    world = TwoSidedWorld()
    (elsewhere,), (path,) = run(world, [(-1,)], Acting.by_policy(torch.ones(1, 2)), paths=True)
    (honest,), _ = run(world, [(1,)], Acting.by_policy(torch.ones(1, 2)))
    np.testing.assert_array_equal(Relabeller(world, TASKS, LAYOUT, H).all(elsewhere.rows, path)[RIGHT].rows, honest.rows)


def test_an_encoder_that_was_trained_with_a_pool_tells_tasks_apart_by_rewards_alone(tmp_path):
    settings = {"updates": 300, "updates_per_epoch": 20, "learning_rate": 3e-3, "posterior_tasks": 3, "context_pool": 200}
    settings |= {"policy_posterior_target": 6.0, "policy_prior_target": 6.0}
    config = world_config(meta=settings)
    torch.manual_seed(0)
    made = MetaTrainer(config, known_skills(config), TwoSidedWorld(), TASKS * 3, tmp_path)
    networks = made.run()
    wandering, paths = rollout(
        TwoSidedWorld(), TASKS * 20, networks.policy, networks.skills.decoder, Acting.by_prior(40, E),
        horizon=H, layout=LAYOUT, rng=np.random.default_rng(0), paths=True,
    )  # fmt: skip
    each = [made.relabeller.all(episode.rows, path) for episode, path in zip(wandering, paths, strict=True)]
    means = []
    for task in (RIGHT, LEFT):  # contexts of the same episodes: only the rewards differ, and what follows them
        context = torch.from_numpy(np.concatenate([episodes[task].rows for episodes in each]))[None]
        assert context[..., LAYOUT.reward].any()
        means.append(networks.encoder(context, torch.ones(context.shape[:2]))[0][0].detach())
    assert float((means[RIGHT] - means[LEFT]).norm()) > 1


def test_what_it_says_it_collected_makes_the_same_pool(generator):
    held = pool(capacity=3)
    for marker in range(100):
        held.add(collected(RIGHT if marker < 10 else LEFT, walk(to=0.1, marker=float(marker))))
    kept = held.collected()
    assert [each.path[0, -1] for each in kept] == [*range(10), *range(100 - MOST_EPISODES, 100)]
    again = pool(capacity=3)
    for each in kept:
        again.add(each)
    state = generator.get_state()
    once = held.sample_context([RIGHT, LEFT], 64, generator)
    generator.set_state(state)
    assert all(map(torch.equal, once, again.sample_context([RIGHT, LEFT], 64, generator)))
