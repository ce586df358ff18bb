import copy
import json
import math

import pytest
import torch
from safetensors import safe_open
from torch import nn

from training.checkpoint import load_checkpoint, save_checkpoint
from training.contract.errors import CheckpointCorrupt, TrainingDiverged
from training.run_log import RunLog


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def train(module, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, 4, generator=generator)).square().sum().backward()
        optimizer.step()


@pytest.fixture
def trained(tmp_path):
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    train(module, optimizer, 5, seed=1)
    path = tmp_path / "runs" / "stage.safetensors"
    save_checkpoint(
        path, modules={"net": module}, optimizers={"adam": optimizer}, tensors={"rows": torch.arange(6).view(2, 3)}, note={"steps": 5}
    )
    return path, module, optimizer


def load(path):
    module = network(seed=9)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    tensors, note = load_checkpoint(path, modules={"net": module}, optimizers={"adam": optimizer})
    return module, optimizer, tensors, note


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(trained):
    path, module, optimizer = trained
    loaded, loaded_optimizer, _, _ = load(path)
    train(module, optimizer, 5, seed=2)
    train(loaded, loaded_optimizer, 5, seed=2)
    for (name, one), other in zip(module.state_dict().items(), loaded.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0, msg=name)


def test_without_its_adam_state_training_would_go_on_differently(trained):
    path, module, optimizer = trained
    loaded = network()
    load_checkpoint(path, modules={"net": loaded})
    train(module, optimizer, 5, seed=2)
    train(loaded, torch.optim.Adam(loaded.parameters(), 0.01), 5, seed=2)
    assert not torch.equal(loaded[0].weight, module[0].weight)


def test_tensors_and_note_come_back(trained):
    _, _, tensors, note = load(trained[0])
    assert tensors["rows"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["rows"].dtype == torch.int64
    assert note == {"steps": 5}


def test_modules_that_share_a_part_are_stored_each(tmp_path):
    shared = nn.Linear(4, 4)
    modules = {"a": nn.Sequential(shared, nn.Linear(4, 1)), "b": nn.Sequential(shared)}
    save_checkpoint(tmp_path / "c.safetensors", modules=modules)
    fresh = {"a": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), "b": nn.Sequential(nn.Linear(4, 4))}
    load_checkpoint(tmp_path / "c.safetensors", modules=fresh)
    assert torch.equal(fresh["a"][0].weight, shared.weight)
    assert torch.equal(fresh["b"][0].weight, shared.weight)


def test_a_name_that_begins_another_is_kept_apart(tmp_path):
    modules = {"encoder": nn.Linear(2, 1), "encoder_prior": nn.Linear(3, 1)}
    save_checkpoint(tmp_path / "c.safetensors", modules=modules)
    fresh = {"encoder": nn.Linear(2, 1), "encoder_prior": nn.Linear(3, 1)}
    load_checkpoint(tmp_path / "c.safetensors", modules=fresh)
    assert torch.equal(fresh["encoder_prior"].weight, modules["encoder_prior"].weight)


def test_an_interrupted_write_leaves_the_old_checkpoint(trained, monkeypatch):
    path, module, _ = trained
    before = copy.deepcopy(module.state_dict())

    def break_off(tensors, file, metadata):
        file.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("training.checkpoint.save_file", break_off)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, modules={"net": network(seed=5)}, note={"steps": 6})
    monkeypatch.undo()
    loaded, _, _, note = load(path)
    assert note == {"steps": 5}
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in before.items())
    save_checkpoint(path, modules={"net": module}, note={"steps": 7})
    assert [file.name for file in path.parent.iterdir()] == ["stage.safetensors"]


def test_a_checkpoint_of_another_network_is_refused(trained):
    with pytest.raises(CheckpointCorrupt, match=r"stage\.safetensors is cut, damaged or of other networks"):
        load_checkpoint(trained[0], modules={"net": nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))})


def test_the_file_is_plain_safetensors(trained):
    with safe_open(trained[0], "pt") as file:
        keys = set(file.keys())
    assert {"module/net/0.weight", "optimizer/adam/0/exp_avg", "optimizer/adam/0/step", "tensor/rows"} <= keys


def test_a_run_log_keeps_one_json_line_a_report(tmp_path, capsys):
    with RunLog(tmp_path / "run", "meta", 4) as log:
        log.report(2, {"loss": 0.25})
        log.report(4, {"loss": 0.125})
    lines = (tmp_path / "run" / "meta.jsonl").read_text().splitlines()
    assert ['"at": 2' in lines[0], '"loss": 0.125' in lines[1], len(lines)] == [True, True, 2]
    assert "meta: 4/4 steps" in capsys.readouterr().err


def test_what_diverges_ends_there_and_says_where_it_began(tmp_path):
    said = r"meta: training has diverged, expected finite numbers after 4 updates, and loss is nan, q is inf"
    with RunLog(tmp_path, "meta", 8, "updates") as log:
        log.report(2, {"loss": 1e30, "q": -1e30})
        with pytest.raises(TrainingDiverged, match=said):
            log.report(4, {"loss": math.nan, "kl": 0.5, "q": math.inf})
    lines = (tmp_path / "meta.jsonl").read_text().splitlines()
    assert [json.loads(line)["at"] for line in lines] == [2, 4], "what it came to is in the log"


def test_a_resumed_run_log_drops_what_lies_beyond_the_checkpoint(tmp_path):
    path = tmp_path / "meta.jsonl"
    path.write_text('{"at": 2, "elapsed_s": 8.0}\n{"at": 4, "elapsed_s": 16.0}\n{"at": 6, "elapsed_s": 24.0}\n{"at": 8, "ela')
    with RunLog(tmp_path, "meta", 8, resumed_at=4) as log:
        log.report(6, {"loss": 0.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["at"] for line in lines] == [2, 4, 6]
    assert 16 <= lines[-1]["elapsed_s"] < 20
    with RunLog(tmp_path, "meta", 8):
        assert path.read_text() == ""
