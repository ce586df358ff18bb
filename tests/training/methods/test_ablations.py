"""Each ablation is Skillet but for one thing, runs from Skillet's own networks, and says what it leaves out."""

import dataclasses
import json
from contextlib import redirect_stderr
from io import StringIO

import numpy as np
import pytest

from tests.training.methods.test_compare import SIZES
from tests.training.methods.test_methods import make_setting, played
from tests.training.test_finetuning import episode
from tests.training.tiny import E
from training.__main__ import main
from training.config import FinetuningConfig, load_config
from training.finetuning import LearnerNetworks
from training.methods.ablations import ABLATIONS
from training.methods.catalogue import METHODS, SKILLET
from training.methods.compare import parser
from training.methods.simpl_learner import OneStepATransition

CHANGES = {
    "no-finetuning": ["finetunes"],
    "no-conditioning": ["keeps_conditioning"],
    "one-step": ["learner"],
    "no-bound": ["finetuning.return_bound"],
    "no-best-share": ["finetuning.imitation", "finetuning.success_share"],
    "no-imitation": ["finetuning.imitation"],
    "no-beyond": ["goes_beyond"],
    "no-reinference": ["finetuning.infer_again"],
    "full-spread": ["evaluate.skill_temperature"],
    "by-prior": ["evaluate.exploration"],
    "by-switching": ["evaluate.exploration"],
    "by-thompson": ["evaluate.exploration"],
    "by-belief": ["evaluate.exploration"],
}
"""What each changes in the kitchen, whose sessions explore by N(0, I) and Thompson sampling in turn."""


def differences(method):
    config, own = (each.configure(load_config("kitchen")).model_dump() for each in (method, SKILLET))
    settings = [f"{section}.{key}" for section, values in own.items() if isinstance(values, dict)
                for key, value in values.items() if config[section][key] != value]  # fmt: skip
    told = {"name", "label", "about", "changes"}
    parts = [
        field.name
        for field in dataclasses.fields(method)
        if field.name not in told and getattr(method, field.name) != getattr(SKILLET, field.name)
    ]
    return sorted(settings + parts)


def test_each_changes_what_it_says_and_nothing_else():
    assert {name: differences(method) for name, method in ABLATIONS.items()} == CHANGES


def test_they_have_names_and_labels_of_their_own():
    methods = [*METHODS.values(), *ABLATIONS.values()]
    assert len({method.name for method in methods}) == len({method.label for method in methods}) == len(methods)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of all ablations that change something in the maze, two short sessions each; and what the command said."""
    out, said = tmp_path_factory.mktemp("ablations"), StringIO()
    with redirect_stderr(said):
        assert main(["compare", "--config", "maze", *SIZES, "--methods", "ablations", "skillet", "--out", str(out)]) == 0
    return out, said.getvalue()


@pytest.fixture(scope="module")
def summary(ran):
    return json.loads((ran[0] / "compare.json").read_text())


def test_those_that_change_something_run_side_by_side_with_skillet_from_a_bundle(ran, summary):
    same = ["no-reinference", "no-imitation", "full-spread"]
    assert set(summary) == {"skillet", *ABLATIONS} - set(same)
    assert all((method["runs"], method["episodes"]) == (2, 2) for method in summary.values())
    assert (ran[0] / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {name for name in ABLATIONS if name in ran[1].split("would change nothing here")[0]} == set(same)


def test_none_is_meta_trained(summary):
    assert all(cost["meta"] is None for method in summary.values() for cost in method["costs"])
    assert all(cost["target"]["updates"] == 0 for cost in summary["no-finetuning"]["costs"])


def test_they_are_not_run_unless_they_are_asked_for():
    assert parser().parse_args(["--config", "maze"]).methods == list(METHODS)


def test_what_a_configuration_has_not_is_refused_before_anything_is_run(tmp_path, capsys):
    without = ["--set=belief.particles=0", "--set=evaluate.exploration=switching"]
    assert main(["compare", "--config", "maze", *SIZES, *without, "--methods", "skillet", "by-belief", "--out", str(tmp_path)]) == 2
    assert "the method by-belief cannot run with this configuration" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("infer_again", [True, False])
def test_at_simpls_pace_a_session_still_infers_its_task_anew(infer_again, exported):
    config = FinetuningConfig(batch=8, buffer=60, infer_again=infer_again)
    learner = OneStepATransition(LearnerNetworks.from_bundle(exported), config, np.zeros(E, np.float32), 0)
    lengths_and_rewards = ((3, 0.0), (6, 1.0), (3, 0.0))
    asked, owed = [], []
    for seed, (length, reward) in enumerate(lengths_and_rewards):
        asked.append(learner.add_episode(episode(seed, length, reward)))
        owed.append(learner.updates_due())
    assert asked == [infer_again, infer_again, False]
    assert owed == [0, 6, 9]  # nothing before there is a batch


def test_a_session_that_never_goes_beyond_what_it_knows_does_not_go_back(tmp_path, monkeypatch):
    monkeypatch.setattr("training.evaluate.overdue", lambda *_, **__: True)
    belief = {"particles": 6, "episodes": 8, "updates": 3, "batch": 16, "hidden": (8,), "dynamics_updates": 3, "dynamics_hidden": (8,)}
    setting = make_setting(belief=belief, evaluate={"exploration": "novelty"})
    for method, goes_back in ((SKILLET, True), (ABLATIONS["no-beyond"], False)):
        _, sessions = played(method, setting, tmp_path)
        rewarded = [session for session in sessions if np.any(session.returns[:-1])]
        assert rewarded
        assert all((session.beyond_from >= 0) is goes_back for session in rewarded)
