import errno
import json
import os
import re
import shutil

import numpy as np
import pytest

from training.__main__ import main
from training.config import load_config
from training.contract.bundle import Bundle
from training.envelope import learn_envelope
from training.evaluate import TargetProtocol
from training.meta_learner import MetaLearner
from training.run import Run
from training.skill_extraction import SkillLearner
from training.stages import STAGES

TINY = [
    "collect.demonstrator.episodes=12",
    "skills.steps=40", "skills.batch=16", "skills.encoder_hidden=[12]", "skills.decoder_hidden=[14]", "skills.prior_hidden=[16]",
    "skills.skill_dim=3",
    "networks.encoder=product_of_gaussians", "networks.encoder_width=8", "networks.policy_hidden=[10]", "networks.critic_hidden=[12]",
    "networks.task_embedding_dim=2", "networks.max_context=20",
    "meta.updates=4", "meta.updates_per_epoch=2", "meta.checkpoint_epochs=1", "meta.batch_per_task=8", "meta.prior_tasks=1",
    "meta.posterior_tasks=2", "meta.posterior_context=8",
    "evaluate.exploration=belief", "belief.particles=5", "belief.episodes=4", "belief.updates=3", "belief.batch=16", "belief.hidden=[6]",
    "finetuning.batch=8", "finetuning.warm_start_updates=2", "finetuning.updates_per_episode=1",
    "evaluate.conditioning_episodes=1", "evaluate.episodes=3", "evaluate.seeds=1",
]  # fmt: skip


class Pipeline:
    """Runs stages of the maze at tiny sizes in one folder."""

    def __init__(self, folder):
        self.run_dir, self.bundle_dir = folder / "run", folder / "bundles" / "maze"

    def __call__(self, stage, *changes, options=()):
        arguments = [stage, "--config", "maze", "--run", str(self.run_dir), "--bundle", str(self.bundle_dir), "--threads", "1", *options]
        for change in (*TINY, *changes):
            arguments += ["--set", change]
        return main(arguments)

    def run(self, *changes):
        return Run(load_config("maze", [*TINY, *changes]), self.run_dir, self.bundle_dir, command="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def finished(folder):
    """A pipeline that has run every stage."""
    pipeline = Pipeline(folder)
    assert pipeline("all") == 0
    return pipeline


@pytest.fixture
def fresh(folder, tmp_path):
    """A pipeline of which nothing has run, beside the finished one's data."""
    return Pipeline(tmp_path)


def refused(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def test_every_stage_leaves_its_checkpoint_log_and_picture(finished):
    names = {path.name for path in finished.run_dir.iterdir() if path.is_file()}
    assert names == {
        "config.json", "skills.safetensors", "skills.jsonl", "skills.png", "meta.safetensors", "meta.jsonl", "meta.png", "embeddings.png",
        "belief.safetensors", "belief.jsonl", "dynamics.jsonl",
        "evaluate.jsonl", "evaluate.json", "evaluate-episodes.json", "evaluate.png", *(f"{stage}.done" for stage in STAGES),
    }  # fmt: skip
    for picture in finished.run_dir.glob("*.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert picture.stat().st_size > 5000


def test_the_bundle_loads_with_what_was_configured_and_measured(finished):
    manifest = Bundle.load(finished.bundle_dir).manifest
    assert (manifest.name, manifest.spec.skill_dim, manifest.spec.task_embedding_dim, manifest.spec.max_context) == ("maze", 3, 2, 20)
    assert manifest.spec.env_id == "clients.simulator:skillet/PointMaze-v0"
    assert (manifest.spec.episode_steps, manifest.spec.control_period_s) == (2000, 0.01)
    assert manifest.provenance.metrics["meta_updates"] == 4
    assert "five_after_conditioning" in manifest.provenance.metrics
    assert manifest.provenance.command.startswith("python -m training all --config maze")


def test_the_bundle_carries_the_safety_envelope_of_its_offline_data(finished):
    manifest, offline = Bundle.load(finished.bundle_dir).manifest, finished.run().offline_episodes()
    assert manifest.envelope == learn_envelope(offline, manifest.spec)
    assert manifest.envelope.source.startswith("12 offline episodes")


def test_the_evaluation_tells_every_episode_of_every_test_task(finished):
    sessions = json.loads((finished.run_dir / "evaluate-episodes.json").read_text())
    assert len({tuple(session["task"]) for session in sessions}) == len(sessions) == 10
    assert {len(session["returns"]) for session in sessions} == {3}
    for session in sessions:
        assert [value > 0 for value in session["returns"]] == session["successes"]
    summary = json.loads((finished.run_dir / "evaluate.json").read_text())["summary"]
    assert summary["conditioning"] == pytest.approx(np.mean([session["successes"][0] for session in sessions]))
    assert summary["conditioning_low"] <= summary["conditioning"] <= summary["conditioning_high"]


def test_trained_stages_are_not_trained_again(finished, monkeypatch, capsys):
    monkeypatch.setattr(SkillLearner, "update", lambda *_: pytest.fail("trained skills again"))
    monkeypatch.setattr(MetaLearner, "update", lambda *_: pytest.fail("meta-trained again"))
    checkpoints = {name: (finished.run_dir / f"{name}.safetensors").read_bytes() for name in ("skills", "meta")}
    assert finished("skills") == 0
    assert finished("meta") == 0
    for name, before in checkpoints.items():
        assert (finished.run_dir / f"{name}.safetensors").read_bytes() == before
    assert "cells an episode by the skill prior" in capsys.readouterr().err


def test_all_skips_what_is_complete(finished, monkeypatch, capsys):
    def again(_):
        """fail"""
        pytest.fail("ran again")

    for stage in STAGES:
        monkeypatch.setitem(STAGES, stage, again)
    assert finished("all") == 0
    assert capsys.readouterr().err.splitlines() == [f"{stage}: complete, skipped" for stage in STAGES]


def test_a_stage_is_complete_only_for_its_configuration_and_with_what_it_made(finished):
    run = finished.run()
    assert all(run.complete(stage) for stage in STAGES)
    assert not any(finished.run("evaluate.episodes=4").complete(stage) for stage in STAGES)
    finished.run()
    for stage, made in (
        ("belief", finished.run_dir / "belief.safetensors"),
        ("export", finished.bundle_dir / "manifest.json"),
        ("meta", finished.run_dir / "meta.safetensors"),
    ):
        made.rename(made.with_suffix(".away"))
        assert [name for name in STAGES if not run.complete(name)] == [stage]
        made.with_suffix(".away").rename(made)


def test_stages_in_the_wrong_order_say_which_comes_first(finished, fresh, capsys, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nowhere"))
        assert fresh("skills") == 2
    assert "expected the dataset skillet/maze-v0" in (message := refused(capsys))
    assert "python -m training collect --config maze" in message
    for stage in ("meta", "evaluate", "export"):
        assert fresh(stage) == 2
        assert "run the stage 'skills' first (python -m training skills --config maze)" in refused(capsys)
    assert fresh("skills") == 0
    for stage in ("evaluate", "export"):
        assert fresh(stage) == 2
        assert "run the stage 'meta' first" in refused(capsys)
    assert not fresh.bundle_dir.exists()


def test_the_exported_bundle_offers_the_belief_and_a_configuration_without_one_makes_none(finished, fresh, capsys):
    manifest = Bundle.load(finished.bundle_dir).manifest
    assert (len(manifest.particles), manifest.exploration, manifest.conditioning_episodes) == (5, "belief", 1)
    none = ("belief.particles=0", "evaluate.exploration=switching")
    assert fresh("belief", *none) == 0
    assert "none is configured" in refused(capsys)
    assert fresh.run(*none).complete("belief")


def test_exploring_by_a_belief_needs_one(fresh, capsys):
    assert fresh("belief", "belief.particles=0") == 2
    assert "evaluate.exploration 'belief' needs particles: set belief.particles" in refused(capsys)


def test_a_longer_training_goes_on_from_the_shorter_one(finished, fresh, capsys):
    assert fresh("skills", "skills.steps=15") == 0
    assert fresh("meta", "skills.steps=15", "meta.updates=2") == 0
    assert fresh("export", "skills.steps=15", "meta.updates=3") == 2
    assert "meta-training stands at update 2 of 3: finish the stage 'meta' first" in refused(capsys)
    assert fresh("meta", "skills.steps=15", "meta.updates=4") == 0
    assert [json.loads(line)["at"] for line in (fresh.run_dir / "meta.jsonl").read_text().splitlines()] == [2, 4]


def test_a_run_of_another_configuration_is_not_mixed_in(finished, capsys):
    assert finished("meta", "skills.horizon=7") == 2
    assert "holds a run with another skills; choose another folder with --run, or delete it" in refused(capsys)
    assert finished("meta") == 0


def test_networks_of_other_meta_settings_are_not_passed_off_as_these(finished, capsys):
    for stage in ("meta", "export", "evaluate"):
        assert finished(stage, "meta.discount=0.9", "meta.kl_clip=3.0") == 2
        assert "meta.safetensors was trained with another meta.discount, meta.kl_clip than this configuration has" in refused(capsys)
        assert finished(stage, "meta.updates=3") == 2
        assert "was trained for 4 updates, and meta.updates is 3: give --set meta.updates=4" in refused(capsys)
    assert finished("meta", "meta.checkpoint_epochs=7") == 0
    assert finished("meta") == 0


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"x" + content[1:], lambda _: b""])
def test_a_damaged_checkpoint_is_named(finished, fresh, capsys, damage):
    shutil.copytree(finished.run_dir, fresh.run_dir)
    checkpoint = fresh.run_dir / "meta.safetensors"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    assert fresh("meta") == 2
    assert f"{checkpoint} is cut, damaged or of other networks" in refused(capsys)


def test_a_disk_that_takes_no_more_ends_the_command_with_one_line(finished, fresh, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "meta.partial")

    shutil.copytree(finished.run_dir, fresh.run_dir)
    (fresh.run_dir / "meta.safetensors").unlink()
    monkeypatch.setattr("training.meta_training.save_checkpoint", full)
    assert fresh("meta") == 1
    assert refused(capsys) == "error: [Errno 28] No space left on device: 'meta.partial'"


def test_an_interrupted_evaluation_goes_on_to_the_same_results(finished, fresh, capsys, monkeypatch):
    def episodes():
        return json.loads((fresh.run_dir / "evaluate-episodes.json").read_text())

    shutil.copytree(finished.run_dir, fresh.run_dir)
    advance, made = TargetProtocol.advance, []

    def stopping(protocol, sessions, episode):
        if episode == 6 and episode not in made:
            made.append(episode)
            raise KeyboardInterrupt
        made.append(episode)
        return advance(protocol, sessions, episode)

    monkeypatch.setattr(TargetProtocol, "advance", stopping)
    assert fresh("evaluate", "evaluate.episodes=7") == 130
    assert fresh("evaluate", "evaluate.episodes=7") == 0
    assert made == [*range(3, 7), 5, 6]  # the first three are those of the finished evaluation, with the same settings
    resumed = episodes()
    shutil.rmtree(next(path for path in fresh.run_dir.glob("evaluate-*") if path.is_dir()))
    assert fresh("evaluate", "evaluate.episodes=7") == 0
    assert episodes() == resumed
    assert fresh("evaluate", "evaluate.episodes=2") == 0
    assert [session["returns"] for session in episodes()] == [session["returns"][:2] for session in resumed]


def test_an_evaluation_with_other_settings_does_not_go_on_from_the_former(finished, fresh):
    shutil.copytree(finished.run_dir, fresh.run_dir)
    assert fresh("evaluate", "finetuning.batch=4") == 0
    assert len([path for path in fresh.run_dir.glob("evaluate-*") if path.is_dir()]) == 1
    lines = (fresh.run_dir / "evaluate.jsonl").read_text().splitlines()
    assert [json.loads(line)["at"] for line in lines] == [1, 2, 3]


def test_a_bundle_does_not_name_the_returns_of_another_evaluation(finished, fresh, capsys):
    shutil.copytree(finished.run_dir, fresh.run_dir)
    assert fresh("export") == 0
    assert "five_after_conditioning" in Bundle.load(fresh.bundle_dir).manifest.provenance.metrics
    assert fresh("export", "finetuning.batch=4") == 0
    assert "five_after_conditioning" not in Bundle.load(fresh.bundle_dir).manifest.provenance.metrics
    assert "is of other networks or settings than these" in capsys.readouterr().err


def test_what_was_learned_with_another_belief_is_refused(finished, fresh, capsys):
    shutil.copytree(finished.run_dir, fresh.run_dir)
    for stage in ("evaluate", "export"):
        assert fresh(stage, "belief.widening=9.0") == 2
        assert "run the stage 'belief' again" in refused(capsys)
    assert fresh("belief", "belief.widening=9.0") == fresh("export", "belief.widening=9.0") == 0


@pytest.mark.parametrize("setting", ["meta.buffer_per_task=10", "finetuning.buffer=10"])
def test_a_replay_without_room_for_an_episode_is_refused(finished, fresh, capsys, setting):
    shutil.copytree(finished.run_dir, fresh.run_dir)
    assert fresh("export", setting) == 2
    name = setting.partition("=")[0]
    assert f"expected {name} to hold an episode of clients.simulator:skillet/PointMaze-v0, 200 skill transitions; got 10" in refused(capsys)


@pytest.mark.parametrize(("share", "warned"), [(0.01, True), (0.3, False)])
def test_skills_that_hardly_change_what_is_done_are_told_of(fresh, capsys, monkeypatch, share, warned):
    monkeypatch.setattr("training.stages.skill_share", lambda *_: share)
    assert fresh("collect") == fresh("skills") == 0
    said = capsys.readouterr().err
    assert f"{share:.1%} of the variance of actions is the skill's" in said
    assert ("lower skills.beta" in said) == warned


@pytest.mark.parametrize(("flags", "warned"), [("sse2 avx2", True), ("avx512f avx512_bf16", False), ("", False)])
def test_bfloat16_on_a_cpu_that_emulates_it_is_told_of(fresh, capsys, monkeypatch, tmp_path, flags, warned):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n" if flags else "processor : 0\n")
    monkeypatch.setattr("training.skill_extraction.CPU_INFO", tmp_path / "cpuinfo")
    assert fresh("collect") == fresh("skills", "skills.precision=bfloat16") == 0
    assert ("emulates products in bfloat16" in capsys.readouterr().err) == warned


def test_unfinished_skills_are_refused(finished, fresh, capsys):
    assert fresh("skills") == 0
    (fresh.run_dir / "config.json").unlink()
    assert fresh("meta", "skills.steps=41") == 2
    assert "skill extraction stands at step 40 of 41: finish the stage 'skills' first" in refused(capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("meta.update=3", "the nearest is 'updates'"),
        ("collect.demonstrator.episode=3", "collect.demonstrator: episode: .*the options are episodes, "),
        ("domain.name=kichen", "expected a domain among maze, kitchen; got 'kichen', the nearest is 'kitchen'"),
    ],
)
def test_a_wrong_setting_ends_the_command_with_one_line(fresh, capsys, change, message):
    assert fresh("collect", change) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])


def test_data_are_not_made_for_a_name_that_no_dataset_may_have(fresh, monkeypatch, capsys):
    monkeypatch.setattr("training.domains.MazeDomain.collect", lambda *_: pytest.fail("collected"))
    assert fresh("collect", "collect.dataset=skillet/maze-1.5-v0") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told == "error: collect.dataset: expected a Minari id such as 'namespace/name-v0', got 'skillet/maze-1.5-v0'"


def test_a_stage_that_is_interrupted_says_how_to_go_on(fresh, finished, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SkillLearner, "update", interrupt)
    assert fresh("skills") == 130
    assert "start the same command again" in refused(capsys)


def test_a_device_that_is_not_there_is_refused(fresh, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert fresh("skills", options=("--device", "cuda")) == 2
    assert "torch finds no CUDA device here; use --device cpu" in refused(capsys)


def test_help_lists_every_stage(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {stage} " in text for stage in (*STAGES, "all"))
