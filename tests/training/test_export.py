import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.training.conftest import COEFFICIENT
from tests.training.tiny import LAYOUT, MAX_CONTEXT, TINY_SPEC, E, S, Z, tiny_config, world_config
from training import export
from training.contract.bundle import Bundle
from training.contract.errors import BundleError
from training.contract.spec import GRAPH_INPUTS, GRAPH_OUTPUTS, META_POLICY, REWARD_DECODER, SKILL_DECODER, SKILL_DYNAMICS, TASK_ENCODER
from training.export import TOLERANCE, export_bundle, export_graph, export_graphs
from training.finetuning import Finetuner
from training.networks.blocks import StateFeatures
from training.networks.meta_policy import MetaPolicy
from training.networks.task_encoder import TaskEncoder

DIMS = {"state": S, "skill": Z, "task_embedding": E}


def session(model, replaced=()):
    """A session of a graph; ``replaced`` pairs of an initializer's name and an OrtValue, which must outlive the session."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for name, value in replaced:
        options.add_initializer(name, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def module_of(networks, name):
    return {SKILL_DECODER: networks.skills.decoder, META_POLICY: networks.policy, TASK_ENCODER: networks.encoder}[name]


def compare(model, name, module, inputs):
    """The largest difference between a graph and its torch module."""
    got = session(model).run(list(GRAPH_OUTPUTS[name]), {key: value.numpy() for key, value in zip(GRAPH_INPUTS[name], inputs, strict=True)})
    with torch.no_grad():
        answer = module(*inputs)
    expected = answer if isinstance(answer, tuple) else (answer,)
    assert [part.shape for part in got] == [tuple(part.shape) for part in expected]
    return max(float(np.abs(ours - theirs.numpy()).max(initial=0)) for ours, theirs in zip(got, expected, strict=True))


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("name", [SKILL_DECODER, META_POLICY])
def test_acting_graphs_answer_as_torch(exported, meta_networks, name, batch):
    inputs = [3 * torch.randn(batch, DIMS[key]) for key in GRAPH_INPUTS[name]]
    assert compare(exported.read(name), name, module_of(meta_networks, name), inputs) <= TOLERANCE


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_reward_decoder_answers_as_torch(exported, untrained_belief, batch):
    inputs = [3 * torch.randn(batch, DIMS[key]) for key in GRAPH_INPUTS[REWARD_DECODER]]
    assert compare(exported.read(REWARD_DECODER), REWARD_DECODER, untrained_belief.decoder, inputs) <= TOLERANCE
    np.testing.assert_array_equal(np.array(exported.manifest.particles, np.float32), untrained_belief.particles.numpy())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [0, 1, 7, MAX_CONTEXT])
@pytest.mark.parametrize("masked", [False, True])
def test_the_task_encoder_answers_as_torch_for_every_length(exported, meta_networks, batch, length, masked):
    mask = (torch.rand(batch, length) < 0.6).float() if masked else torch.ones(batch, length)
    inputs = [torch.randn(batch, length, LAYOUT.width), mask]
    assert compare(exported.read(TASK_ENCODER), TASK_ENCODER, meta_networks.encoder, inputs) <= TOLERANCE


@pytest.mark.parametrize("length", [0, 5])
def test_the_exported_encoder_gives_exactly_the_task_prior_for_an_empty_context(exported, length):
    inputs = {"context": np.ones((2, length, LAYOUT.width), np.float32), "mask": np.zeros((2, length), np.float32)}
    mean, std = session(exported.read(TASK_ENCODER)).run(["mean", "std"], inputs)
    np.testing.assert_array_equal(mean, np.zeros((2, E)))
    np.testing.assert_array_equal(std, np.ones((2, E)))


def test_a_product_of_gaussians_exports_too():
    torch.manual_seed(0)
    config = tiny_config(networks={"encoder": "product_of_gaussians"})
    encoder = TaskEncoder(StateFeatures(S, config.features), LAYOUT, config.networks)
    batch, count = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("count", min=0, max=1 << 16)
    cases = [(torch.randn(b, n, LAYOUT.width), torch.ones(b, n)) for b in (1, 3) for n in (0, 1, 7, MAX_CONTEXT)]
    axes = ({0: batch, 1: count}, {0: batch, 1: count})
    graph = export_graph(TASK_ENCODER, encoder, (torch.randn(2, 5, LAYOUT.width), torch.ones(2, 5)), axes, cases)
    assert graph.largest_difference <= TOLERANCE


def test_golden_vectors_reproduce_and_are_not_trivial(exported):
    assert set(exported.manifest.golden) == {SKILL_DECODER, META_POLICY, TASK_ENCODER, REWARD_DECODER, SKILL_DYNAMICS}
    for name, golden in exported.manifest.golden.items():
        inputs = {key: np.asarray(value, np.float32) for key, value in golden.inputs.items()}
        assert all(value.size for value in inputs.values())
        answers = session(exported.read(name)).run(list(golden.outputs), inputs)
        assert tuple(golden.outputs) == GRAPH_OUTPUTS[name]
        for answer, value in zip(answers, golden.outputs.values(), strict=True):
            np.testing.assert_allclose(answer, np.asarray(value, np.float32), atol=golden.tolerance)
        assert max(np.abs(answer).max() for answer in answers) > 0.1
    assert np.asarray(exported.manifest.golden[TASK_ENCODER].inputs["context"]).shape == (3, 7, LAYOUT.width)


def test_the_manifest_tells_what_the_bundle_is(exported):
    manifest, config = exported.manifest, world_config()
    assert manifest.spec == TINY_SPEC
    assert manifest.name == "tiny"
    assert manifest.finetuning == config.finetuning.model_dump(mode="json")
    assert manifest.networks.keys() == {"features", "skills", "networks"}
    assert manifest.provenance.config == config.model_dump(mode="json")
    assert manifest.provenance.metrics == {"meta_updates": 7.0}
    assert len(manifest.provenance.commit) in (len("unknown"), 40)
    card = exported.read("README.md").decode()
    for words in ("| 2 | vx | m/s | -9 | 9 |", "| 1 | ay | m | -0.5 | 0.5 |", "meta_updates", "python -m training export --config tiny"):
        assert words in card


def test_fine_tuned_weights_over_the_initializers_answer_as_the_learners_torch(exported):
    learner = Finetuner.from_bundle(exported, np.array([0.5, -0.5], np.float32), seed=0)
    rows = np.random.default_rng(0).standard_normal((6, LAYOUT.width)).astype(np.float32)
    learner.add_episode(rows)
    learner.update(20)
    state, embedding = torch.randn(3, S), learner.task_embedding.expand(3, -1)
    with torch.no_grad():
        expected = learner.networks.policy(state, embedding)
    inputs = {"state": state.numpy(), "task_embedding": embedding.numpy()}
    weights = [(name, onnxruntime.OrtValue.ortvalue_from_numpy(value)) for name, value in learner.policy_weights().items()]
    tuned = session(exported.read(META_POLICY), weights).run(list(GRAPH_OUTPUTS[META_POLICY]), inputs)
    plain = session(exported.read(META_POLICY)).run(list(GRAPH_OUTPUTS[META_POLICY]), inputs)
    for ours, theirs in zip(tuned, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=TOLERANCE)
    assert np.abs(tuned[0] - plain[0]).max() > 1e-3
    np.testing.assert_array_equal(tuned[2], plain[2])  # the skill prior stays


@pytest.fixture
def same_graphs(exported, monkeypatch):
    """The exporter gives the graphs of the untouched networks, whatever has become of the modules."""
    by_outputs = {outputs: exported.read(name) for name, outputs in GRAPH_OUTPUTS.items()}
    monkeypatch.setattr(export, "_to_onnx", lambda module, example, inputs, outputs, axes: by_outputs[outputs])


@pytest.mark.parametrize(
    ("graph", "weight", "damage"),
    [
        (SKILL_DECODER, "skills.decoder.net.0.bias", 3e-4),
        (META_POLICY, "policy.net.0.weight", 1e-2),
        (TASK_ENCODER, "encoder.head.0.bias", 1e-2),
        (TASK_ENCODER, "encoder.head.4.bias", float("nan")),
    ],
)
def test_a_graph_that_differs_from_torch_is_not_written(same_graphs, meta_networks, tmp_path, graph, weight, damage):
    networks = copy.deepcopy(meta_networks)
    part, _, name = weight.partition(".")
    with torch.no_grad():
        getattr(networks, part).get_parameter(name).add_(damage)
    with pytest.raises(BundleError, match=rf"{graph}: ONNX and torch differ by \S+, more than 1e-05; the bundle was not written"):
        export_bundle(
            tmp_path / "bundle", config=world_config(), networks=networks, coefficient=1.0, spec=TINY_SPEC, metrics={}, command="test"
        )
    assert list(tmp_path.iterdir()) == []


def test_undamaged_networks_pass_the_same_comparison(same_graphs, meta_networks, untrained_belief):
    graphs = export_graphs(copy.deepcopy(meta_networks), TINY_SPEC, untrained_belief)
    assert {name: graph.largest_difference <= TOLERANCE for name, graph in graphs.items()} == dict.fromkeys(GRAPH_INPUTS, True)


def test_a_graph_that_lost_a_trained_weight_is_refused(meta_networks, monkeypatch):
    class Folded:
        """An exported program that keeps one trained weight alone."""

        class model:
            class graph:
                initializers = ("net.0.weight",)

    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: Folded)
    with pytest.raises(BundleError, match=r"the exporter folded \['net\.0\.bias', .*'net\.4\.weight'\] away"):
        export._to_onnx(meta_networks.policy, (torch.zeros(1, S), torch.zeros(1, E)), (), (), None)
    assert isinstance(meta_networks.policy, MetaPolicy)


def test_a_written_bundle_is_replaced_by_a_new_export(same_graphs, meta_networks, tmp_path):
    for coefficient in (0.1, COEFFICIENT):
        export_bundle(
            tmp_path / "bundle",
            config=world_config(),
            networks=meta_networks,
            coefficient=coefficient,
            spec=TINY_SPEC,
            metrics={},
            command="c",
        )
    learner = Finetuner.from_bundle(Bundle.load(tmp_path / "bundle"), np.zeros(E, np.float32), 0)
    assert learner.networks.coefficient().item() == pytest.approx(COEFFICIENT, rel=1e-5)


def test_the_graphs_tell_nothing_of_the_machine_they_were_made_on(exported):
    here = str(Path(__file__).parents[2]).encode()
    for name in (SKILL_DECODER, META_POLICY, TASK_ENCODER):
        data = exported.read(name)
        assert here not in data
        assert b".py" not in data
