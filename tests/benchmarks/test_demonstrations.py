"""Depths of contact, measured in every physics step, and their table."""

import mujoco
import numpy as np
import pytest

from benchmarks.demonstrations import SURROUNDINGS, measured_contacts, table

SPHERES = """
<mujoco>
  <option gravity="0 0 0"/>
  <worldbody>
    <body name="knob 2"><geom type="box" size=".1 .1 .1"/></body>
    <body name="wall" pos="1 0 0"><geom type="box" size=".1 .1 .1"/></body>
    <body name="panda0_link6" pos="0 0 .5"><geom type="sphere" size=".05"/></body>
    <body name="panda0_leftfinger"><joint type="slide" axis="1 0 0"/><geom type="sphere" size=".05" mass="1"/></body>
  </worldbody>
</mujoco>"""


@pytest.fixture
def model():
    return mujoco.MjModel.from_xml_string(SPHERES)


def depths_at(model, x, other=None):
    """Depths of contact of a finger at ``x`` in one physics step."""
    data = mujoco.MjData(model)
    data.qpos[0] = x
    with measured_contacts(model) as depths:
        mujoco.mj_step(other or model, mujoco.MjData(other) if other else data)
    return dict(depths)


def test_the_depth_is_how_far_a_finger_lies_inside_what_it_touches(model):
    assert depths_at(model, 0.147) == {("bottom burner", "fingers"): [pytest.approx(0.003, abs=1e-6)]}
    assert depths_at(model, 0.852) == {(SURROUNDINGS, "fingers"): [pytest.approx(0.002, abs=1e-6)]}
    assert depths_at(model, 0.5) == {}


def test_other_models_are_not_measured_and_afterwards_nothing_is(model):
    assert depths_at(model, 0.147, other=mujoco.MjModel.from_xml_string("<mujoco/>")) == {}
    assert mujoco.get_mjcb_control() is None


def test_the_table_counts_only_steps_in_touch():
    depths = {("kettle", "fingers"): [-0.001, 0.001, 0.002, 0.003], ("kettle", "hand"): [-0.002]}
    text = table(depths, 2, 300)
    assert "| kettle | fingers | 3 | 2.0 mm | 3.0 mm | 3.0 mm |" in text
    assert "| kettle | hand | 0 | | | |" in text
    assert np.all(["2 episodes, 300 control steps" in text, "| surroundings | hand | 0 | | | |" in text])
