"""Graphs of a bundle: checked against golden vectors, and given fine-tuned weights."""

import numpy as np
import pytest

from service.policies import MetaPolicy, Networks, PolicyCache, PolicyWeights
from training.contract.bundle import Bundle
from training.contract.errors import BundleCorrupt
from training.finetuning import Finetuner


def test_a_graph_that_answers_otherwise_than_its_golden_vectors_is_refused(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.manifest.golden["skill_decoder.onnx"]
    actions = [[number + 0.01 for number in row] for row in golden.outputs["action"]]
    changed = golden.model_copy(update={"outputs": {"action": actions}})
    manifest = tiny_bundle.manifest.model_copy(update={"golden": {**tiny_bundle.manifest.golden, "skill_decoder.onnx": changed}})
    with pytest.raises(BundleCorrupt, match=r"skill_decoder\.onnx.*golden"):
        Networks(Bundle(tiny_bundle.path, manifest))


def test_fine_tuned_weights_replace_those_of_the_graph(tiny_bundle: Bundle, tiny_networks: Networks) -> None:
    finetuner = Finetuner.from_bundle(tiny_bundle, np.zeros(2, np.float32), 0)
    own, state, noise = finetuner.policy_weights(), np.arange(4, dtype=np.float32), np.ones(3, np.float32)
    embedding = np.array([0.5, -0.5], np.float32)
    bundled = tiny_networks.meta_policy.choose_skill(state, embedding, noise, use_skill_prior=False)
    same = tiny_networks.with_weights(PolicyWeights.from_bytes(PolicyWeights.pack(embedding, own).to_bytes()), 1)
    np.testing.assert_allclose(same.choose_skill(state, embedding, noise, use_skill_prior=False), bundled, atol=1e-6)
    other = {name: array + 0.1 for name, array in own.items()}
    tuned = tiny_networks.with_weights(PolicyWeights.pack(embedding, other), 2)
    assert np.abs(tuned.choose_skill(state, embedding, noise, use_skill_prior=False) - bundled).max() > 0.01
    prior = tuned.choose_skill(state, embedding, noise, use_skill_prior=True)
    np.testing.assert_array_equal(prior, tiny_networks.meta_policy.choose_skill(state, embedding, noise, use_skill_prior=True))


def test_a_bundles_temperature_scales_what_its_policies_draw_and_not_the_skill_prior(tiny_bundle: Bundle, tiny_networks: Networks) -> None:
    manifest = tiny_bundle.manifest.model_copy(update={"skill_temperature": 0.25})
    cooler = Networks(Bundle(tiny_bundle.path, manifest))
    state, embedding, noise = np.arange(4, dtype=np.float32), np.array([0.5, -0.5], np.float32), np.array([1.0, -2.0, 0.5], np.float32)
    weights = PolicyWeights.pack(embedding, Finetuner.from_bundle(tiny_bundle, embedding, 0).policy_weights())
    for plain, cool in (
        (tiny_networks.meta_policy, cooler.meta_policy),
        (tiny_networks.with_weights(weights, 1), cooler.with_weights(weights, 1)),
    ):
        mean = plain.choose_skill(state, embedding, None, use_skill_prior=False)
        np.testing.assert_array_equal(cool.choose_skill(state, embedding, None, use_skill_prior=False), mean)
        drawn = plain.choose_skill(state, embedding, noise, use_skill_prior=False) - mean
        np.testing.assert_allclose(cool.choose_skill(state, embedding, noise, use_skill_prior=False) - mean, drawn / 4, atol=1e-6)
        prior = plain.choose_skill(state, embedding, noise, use_skill_prior=True)
        np.testing.assert_array_equal(cool.choose_skill(state, embedding, noise, use_skill_prior=True), prior)


def test_weights_of_a_wrong_shape_are_refused(tiny_bundle: Bundle) -> None:
    weights = Finetuner.from_bundle(tiny_bundle, np.zeros(2, np.float32), 0).policy_weights()
    name = next(iter(weights))
    wrong = PolicyWeights.pack(np.zeros(2, np.float32), {**weights, name: np.zeros((2, 2), np.float32)})
    with pytest.raises(Exception, match=r"(?i)shape|dimension"):
        Networks(tiny_bundle).with_weights(wrong, 1).choose_skill(
            np.zeros(4, np.float32), np.zeros(2, np.float32), None, use_skill_prior=False
        )
    networks = Networks(tiny_bundle)
    networks.with_weights(PolicyWeights.pack(np.zeros(2, np.float32), weights), 1)
    with pytest.raises(ValueError, match="expected weights"):
        networks.with_weights(wrong, 2)


def test_policies_that_share_a_graph_keep_their_own_weights(tiny_bundle: Bundle, tiny_networks: Networks) -> None:
    own = Finetuner.from_bundle(tiny_bundle, np.zeros(2, np.float32), 0).policy_weights()
    state, embedding = np.arange(4, dtype=np.float32), np.array([0.5, -0.5], np.float32)

    def tuned(shift: float) -> MetaPolicy:
        weights = PolicyWeights.pack(embedding, {name: array + np.float32(shift) for name, array in own.items()})
        return tiny_networks.with_weights(weights, 1)

    def choose(policy: MetaPolicy) -> np.ndarray:
        return policy.choose_skill(state, embedding, None, use_skill_prior=False)

    policies = [tuned(shift) for shift in (0.0, 0.1, 0.2)]
    first = [choose(policy) for policy in policies]
    assert len({skill.tobytes() for skill in first}) == 3
    for policy, skill in reversed(list(zip(policies, first, strict=True))):
        np.testing.assert_array_equal(choose(policy), skill)
        np.testing.assert_array_equal(policy.graph.run(state[None], embedding[None])[0][0], skill)


def test_actions_stay_within_the_limits_of_the_spec(tiny_networks: Networks) -> None:
    for scale in (1.0, 1e3, 1e30):
        action = tiny_networks.decode(np.full(4, scale, np.float32), np.full(3, -scale, np.float32))
        assert action.dtype == np.float32
        assert (np.abs(action) <= 1).all()


def test_the_least_recently_used_policy_is_dropped_first(tiny_networks: Networks) -> None:
    cache = PolicyCache(2)
    policies = [type(tiny_networks.meta_policy)(tiny_networks.meta_policy.graph, version) for version in (1, 2, 3)]
    cache.put("a", policies[0])
    cache.put("a", policies[1])
    assert cache.get("a", 1) is policies[0]
    cache.put("a", policies[2])
    assert (cache.get("a", 1), cache.get("a", 2), cache.get("a", 3)) == (policies[0], None, policies[2])
    assert cache.get("b", 1) is None
