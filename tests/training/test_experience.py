"""Meta-training that is interrupted, and what it goes on from."""

import errno
import os

import pytest
import torch

from tests.training.test_meta_demonstrations import demonstrated
from tests.training.test_meta_training import report, trainer
from training.contract.errors import CheckpointCorrupt
from training.meta_learner import MetaLearner


class Stopped(Exception):
    pass


UPDATE = MetaLearner.update


def stop_after(monkeypatch, updates):
    """Interrupt meta-training after so many updates, once."""
    count = [0]

    def stopping(learner, *replays, **options):
        count[0] += 1
        if count[0] == updates + 1:
            raise Stopped
        return UPDATE(learner, *replays, **options)

    monkeypatch.setattr(MetaLearner, "update", stopping)


def kept_experience(run_dir):
    return list(run_dir.glob("meta-experience-*"))


@pytest.mark.parametrize("options", [{}, {"context_pool": 7, "relabelled_episodes": 2}])
def test_an_interrupted_training_goes_on_as_if_it_never_had_been(tmp_path, monkeypatch, options):
    options |= {"updates": 160}
    whole = trainer(tmp_path / "whole", **options).run()
    stop_after(monkeypatch, 5 * 20 + 3)
    with pytest.raises(Stopped):
        trainer(tmp_path / "cut", **options).run()
    assert len(kept_experience(tmp_path / "cut")) == 1
    torch.manual_seed(99)
    resumed = trainer(tmp_path / "cut", **options)
    parted = resumed.run()
    assert resumed.updates == 160
    assert kept_experience(tmp_path / "cut") == []
    for name, module in whole.modules().items():
        for one, same in zip(module.state_dict().values(), parted.modules()[name].state_dict().values(), strict=True):
            assert torch.equal(one, same), name
    returns = [[line["posterior_return"] for line in report(tmp_path / run)] for run in ("whole", "cut")]
    assert returns[0] == returns[1]


def test_an_interrupted_training_with_demonstrations_goes_on_as_if_it_never_had_been(tmp_path, monkeypatch):
    options = {"context_pool": 7, "replayed_demonstrations": True, "imitation": 0.1, "updates": 160, "updates_per_epoch": 20}
    whole = demonstrated(tmp_path / "whole", **options)[0].run()
    stop_after(monkeypatch, 5 * 20 + 3)
    with pytest.raises(Stopped):
        demonstrated(tmp_path / "cut", **options)[0].run()
    parted = demonstrated(tmp_path / "cut", **options)[0].run()
    for name, module in whole.modules().items():
        for one, same in zip(module.state_dict().values(), parted.modules()[name].state_dict().values(), strict=True):
            assert torch.equal(one, same), name


def test_without_what_it_had_collected_it_goes_on_from_its_networks_with_new_episodes(tmp_path, monkeypatch):
    stop_after(monkeypatch, 5 * 20 + 3)
    with pytest.raises(Stopped):
        trainer(tmp_path, updates=160).run()
    (experience,) = kept_experience(tmp_path)
    experience.unlink()
    resumed = trainer(tmp_path, updates=160)
    resumed.resume()
    assert (resumed.updates, resumed.epoch) == (80, 4)  # the checkpoint of the fourth epoch
    assert [resumed.replay.size(task) > 0 for task in (0, 1)] == [True, True]
    assert resumed.learner.judge_optimizer.state_dict()["state"][0]["step"] == 80
    resumed.run()
    assert resumed.updates == 160


def test_a_disk_without_room_for_what_was_collected_takes_the_checkpoint_all_the_same(tmp_path, monkeypatch, caplog):
    def full(path, **_):
        path.with_suffix(".partial").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("training.experience.save_checkpoint", full)
    stop_after(monkeypatch, 50)
    with pytest.raises(Stopped):
        trainer(tmp_path, updates=160).run()
    assert "No space left on device" in caplog.text
    assert kept_experience(tmp_path) == []
    resumed = trainer(tmp_path, updates=160)
    resumed.resume()
    assert resumed.updates == 40


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda _: b""])
def test_damaged_experience_is_named(tmp_path, monkeypatch, damage):
    stop_after(monkeypatch, 50)
    with pytest.raises(Stopped):
        trainer(tmp_path, updates=160).run()
    (experience,) = kept_experience(tmp_path)
    experience.write_bytes(damage(experience.read_bytes()))
    with pytest.raises(CheckpointCorrupt, match=rf"{experience.name} is cut, damaged"):
        trainer(tmp_path, updates=160).resume()
