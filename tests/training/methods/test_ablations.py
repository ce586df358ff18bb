"""Each ablation is Skillet but for one thing, runs from Skillet's own networks, and says what it leaves out."""

import dataclasses
import json

import pytest

from tests.training.methods.test_compare import SIZES
from training.__main__ import main
from training.config import load_config
from training.methods.ablations import ABLATIONS
from training.methods.catalogue import METHODS, SKILLET
from training.methods.compare import parser

CHANGES = {
    "no-finetuning": ["finetunes"],
    "no-conditioning": ["keeps_conditioning"],
    "one-step": ["learner"],
    "no-bound": ["finetuning.return_bound"],
    "no-best-share": ["finetuning.imitation", "finetuning.success_share"],
    "no-imitation": ["finetuning.imitation"],
    "no-reinference": ["finetuning.infer_again"],
    "full-spread": ["evaluate.skill_temperature"],
    "by-prior": ["evaluate.exploration"],
    "by-switching": ["evaluate.exploration"],
    "by-thompson": [],
    "by-belief": ["evaluate.exploration"],
}
"""What each changes in the kitchen, whose sessions explore by Thompson sampling."""


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
def summary(tmp_path_factory):
    out = tmp_path_factory.mktemp("ablations")
    assert main(["compare", "--config", "maze", *SIZES, "--methods", "ablations", "skillet", "--out", str(out)]) == 0
    assert (out / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return json.loads((out / "compare.json").read_text())


def test_all_run_side_by_side_with_skillet_from_a_bundle(summary):
    assert list(summary) == ["skillet", *ABLATIONS]
    assert all((method["runs"], method["episodes"]) == (2, 2) for method in summary.values())


def test_none_is_meta_trained(summary):
    assert all(cost["meta"] is None for method in summary.values() for cost in method["costs"])
    assert all(cost["target"]["updates"] == 0 for cost in summary["no-finetuning"]["costs"])


def test_they_are_not_run_unless_they_are_asked_for():
    assert parser().parse_args(["--config", "maze"]).methods == list(METHODS)
