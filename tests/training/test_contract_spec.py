import pytest
from pydantic import ValidationError

from training.contract.context import ContextLayout
from training.contract.spec import GRAPH_INPUTS, GRAPH_OUTPUTS, ModelSpec, VectorSpec

OBSERVATION = VectorSpec(names=("x", "y", "vx", "vy"), units=("m", "m", "m/s", "m/s"), low=(-9.0,) * 4, high=(9.0,) * 4)
ACTION = VectorSpec(names=("fx", "fy"), units=("N", "N"), low=(-1.0,) * 2, high=(1.0,) * 2)
FIELDS = {
    "env_id": "Tiny-v0",
    "observation": OBSERVATION,
    "action": ACTION,
    "skill_dim": 3,
    "skill_horizon": 5,
    "task_embedding_dim": 2,
    "max_context": 12,
    "episode_steps": 13,
    "control_period_s": 0.1,
}


def test_dimensions_follow_from_the_names():
    spec = ModelSpec(**FIELDS)
    assert (OBSERVATION.dim, spec.state_dim, spec.action_dim) == (4, 4, 2)
    assert spec.skill_transition_dim == ContextLayout(4, 3).width == 13


@pytest.mark.parametrize("entry", ["names", "units", "low", "high"])
def test_a_vector_spec_of_unequal_lengths_is_refused(entry):
    fields = OBSERVATION.model_dump()
    fields[entry] = fields[entry][:-1]
    with pytest.raises(ValidationError, match=rf"one length, got .*'{entry}': 3"):
        VectorSpec(**fields)


@pytest.mark.parametrize("entry", ["skill_dim", "skill_horizon", "task_embedding_dim", "max_context", "episode_steps", "control_period_s"])
def test_a_size_of_zero_is_refused(entry):
    with pytest.raises(ValidationError, match=entry):
        ModelSpec(**{**FIELDS, entry: 0})


def test_an_unknown_field_is_refused_and_a_spec_does_not_change():
    with pytest.raises(ValidationError, match="skil_dim"):
        ModelSpec(**FIELDS, skil_dim=3)
    spec = ModelSpec(**FIELDS)
    with pytest.raises(ValidationError, match="frozen"):
        spec.skill_dim = 4


def test_a_spec_survives_json():
    spec = ModelSpec(**FIELDS)
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_every_graph_has_named_inputs_and_outputs():
    assert GRAPH_INPUTS.keys() == GRAPH_OUTPUTS.keys()
    assert all(len(set(names)) == len(names) > 0 for names in [*GRAPH_INPUTS.values(), *GRAPH_OUTPUTS.values()])
