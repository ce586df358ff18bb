from pathlib import Path

import pytest

from tests.training.tiny import tiny_config
from training.config import TrainingConfig, load_config, presets
from training.config_comparison import digested, incompatible_sections
from training.contract.bundle import Bundle
from training.contract.errors import ConfigError
from training.export import config_digest

TEXT = """
seed = 3
[domain]
name = "tiny"
env_id = "Tiny-v0"
train_tasks = "train"
test_tasks = "test"
[collect]
dataset = "testing/tiny-v0"
[meta]
updates = 7
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT)
    return path


def test_every_preset_loads_by_its_name():
    assert "maze" in presets()
    for name in presets():
        assert load_config(name).domain.name == name


def test_a_file_loads_by_its_path_with_defaults_for_what_it_leaves_out(file):
    config = load_config(str(file))
    assert (config.seed, config.meta.updates) == (3, 7)
    assert config.skills == TrainingConfig.model_validate({"domain": config.domain, "collect": config.collect}).skills


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("meta.updates=5000", "meta", "updates", 5000),
        ("meta.discount=0.9", "meta", "discount", 0.9),
        ("meta.return_bound=false", "meta", "return_bound", False),
        ("meta.return_bound=False", "meta", "return_bound", False),
        ("skills.decoder_hidden=[7, 8]", "skills", "decoder_hidden", (7, 8)),
        ("networks.encoder=product_of_gaussians", "networks", "encoder", "product_of_gaussians"),
        ("data.observation_key=a=b", "data", "observation_key", "a=b"),
        ("data.observation_entries=[2, 0]", "data", "observation_entries", (2, 0)),
        ("collect.demonstrator.episodes=60", "collect", "demonstrator", {"episodes": 60}),
        (" evaluate.seeds =2", "evaluate", "seeds", 2),
    ],
)
def test_an_override_is_read_as_json_or_else_as_text(file, override, section, key, value):
    assert getattr(getattr(load_config(str(file), [override]), section), key) == value


def test_later_overrides_win_and_sections_keep_their_other_values(file):
    config = load_config(str(file), ["meta.polyak=0.5", "seed=4", "seed=5"])
    assert (config.seed, config.meta.polyak, config.meta.updates) == (5, 0.5, 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("meta.update=5", "no key 'update'; the nearest is 'updates'"),
        ("mate.updates=5", "no key 'mate'; the nearest is 'meta'"),
        ("meta.updates.more=5", "no key 'more'"),
        ("meta.updates", "--set takes key=value, e.g. meta.updates=5000; got 'meta.updates'"),
        ("meta.updates=many", "meta.updates: .*integer"),
        ("meta.updates=0", "meta.updates: .*greater than 0"),
        ("meta=5", "meta: "),
        ("skills.decoded_steps=11", r"decoded_steps \(11\) must not exceed horizon \(10\)"),
        ("finetuning.detours=true", "detours need infer_again"),
        ("networks.encoder_heads=3", r"encoder_width \(64\) must be a multiple of encoder_heads \(3\)"),
        ("data.minary=D4RL/kitchen/mixed-v2", "no key 'minary'; the nearest is 'minari'"),
        ("data.observation_entries=[0, -1]", "data.observation_entries.1: .*greater than or equal to 0"),
        ("data.observation_entries=[]", "data.observation_entries: .*at least 1 item"),
        ("finetuning.warm_start_updates=0", "finetuning.warm_start_updates: .*greater than 0"),
    ],
)
def test_a_wrong_override_is_refused_with_what_was_expected(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("maze", [override])


def test_a_wrong_key_in_a_file_names_the_nearest(file):
    file.write_text(TEXT + "updates_per_epok = 3\n")
    with pytest.raises(ConfigError, match=r"meta\.updates_per_epok: .* \(the nearest key is 'updates_per_epoch'\)"):
        load_config(str(file))


def test_a_wrong_section_in_a_file_names_the_nearest(file):
    file.write_text(TEXT + "[skils]\n")
    with pytest.raises(ConfigError, match=r"skils: .* \(the nearest key is 'skills'\)"):
        load_config(str(file))


def test_a_missing_section_is_named(tmp_path):
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(ConfigError, match=r"domain: Field required; collect: Field required"):
        load_config(str(tmp_path / "empty.toml"))


@pytest.mark.parametrize("content", [b"[domain", b"seed = \xff"])
def test_a_file_that_is_no_toml_is_named(tmp_path, content):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml is no TOML"):
        load_config(str(tmp_path / "bad.toml"))


def test_an_override_below_something_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "flat.toml").write_text("meta = 5")
    with pytest.raises(ConfigError, match="expected 'meta' to be a table in the file, found 5"):
        load_config(str(tmp_path / "flat.toml"), ["meta.updates=3"])


def test_an_unknown_configuration_names_the_presets():
    with pytest.raises(ConfigError, match=r"no configuration 'labyrinth': give a TOML file or one of .*maze"):
        load_config("labyrinth")


def test_a_configuration_is_frozen_and_survives_json():
    config = tiny_config()
    with pytest.raises(ValueError, match="frozen"):
        config.meta.updates = 1
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config


def test_the_offline_data_are_the_projects_own_unless_a_minari_dataset_is_named():
    own = load_config("kitchen").offline_data
    assert (own.minari, own.observation_key, own.observation_entries) == ("skillet/kitchen-v0", None, None)
    other = load_config("kitchen", ["data.minari=D4RL/kitchen/mixed-v2"]).offline_data
    assert (other.minari, other.observation_key) == ("D4RL/kitchen/mixed-v2", "observation")
    assert other.observation_entries == (*range(9), *range(18, 39))


@pytest.mark.parametrize(
    ("overrides", "sections"),
    [
        ([], []),
        (["meta.updates=5", "evaluate.seeds=1"], []),
        (["seed=9", "skills.horizon=7"], ["skills", "seed"]),
        (["collect.demonstrator.episodes=3"], ["collect"]),
        (["data.minari=D4RL/kitchen/mixed-v2"], ["data"]),
        (["data.observation_entries=[3]"], []),
    ],
)
def test_checkpoints_go_with_a_configuration_that_trains_the_same_on_the_same_data(overrides, sections):
    old = load_config("kitchen").model_dump(mode="json")
    assert incompatible_sections(old, load_config("kitchen", overrides)) == sections


def test_checkpoints_of_a_minari_dataset_go_with_no_other_and_with_no_other_entries():
    old = load_config("kitchen", ["data.minari=D4RL/kitchen/mixed-v2"]).model_dump(mode="json")
    same, other = ["data.minari=D4RL/kitchen/mixed-v2"], ["data.minari=D4RL/kitchen/partial-v2"]
    assert incompatible_sections(old, load_config("kitchen", same)) == []
    for overrides in (other, [*same, "data.observation_entries=[3]"], []):
        assert incompatible_sections(old, load_config("kitchen", overrides)) == ["data"]


def test_settings_that_an_older_version_did_not_have_or_had_besides_do_not_part_checkpoints_from_their_configuration():
    old = load_config("kitchen").model_dump(mode="json")
    old["collect"]["observation_key"] = None
    old["evaluate"]["exploration"] = "no longer known"
    del old["data"], old["skills"]["learning_rate"]
    assert incompatible_sections(old, load_config("kitchen")) == []
    assert incompatible_sections(old, load_config("kitchen", ["skills.learning_rate=0.5", "data.minari=a_b/c-v0"])) == ["skills", "data"]


def test_a_value_that_is_no_longer_taken_parts_checkpoints_from_their_configuration():
    old = load_config("kitchen").model_dump(mode="json")
    old["networks"]["encoder"] = "no longer known"
    assert incompatible_sections(old, load_config("kitchen")) == ["networks"]


def test_a_setting_that_came_later_leaves_digests_alone_until_it_is_used():
    """The committed bundle was made before it came, with this preset."""
    assert "precision" not in digested(load_config("maze"))["skills"]
    used = digested(load_config("maze", ["skills.precision=bfloat16"]))
    assert used["skills"].pop("precision") == "bfloat16"
    assert used == digested(load_config("maze"))
    made_with = Bundle.load(Path(__file__).parents[2] / "bundles" / "maze").manifest.provenance.config_sha256
    assert config_digest(load_config("maze")) == made_with
