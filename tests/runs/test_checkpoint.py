"""Checkpoints: whole or recognised as torn, the right ones kept, nothing lost on a full disk."""

import json
import shutil
from collections import namedtuple

import pytest
import torch

from packtrain.data.atomic import hash_file
from packtrain.errors import CheckpointError, DiskFullError, RunError
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout, existing_run, locked


@pytest.fixture
def layout(tmp_path):
    made = RunLayout(tmp_path / "run")
    made.folder.mkdir()
    return made


def save(layout, step, *, val_loss=None, keep=3):
    generator = torch.Generator().manual_seed(step)
    model = {"a.weight": torch.randn(5, 3, generator=generator), "b": torch.randn(2, generator=generator)}
    state = {"step": step, "tokens": step * 100, "val_loss": val_loss}
    checkpoint.save(layout, model=model, optimizer={"a.weight/step": torch.tensor(1.0)}, state=state, keep=keep)
    return model


def test_what_was_saved_is_read_back(layout):
    model = save(layout, 7, val_loss=2.5)
    found = checkpoint.newest(layout)
    assert (found.step, found.state["tokens"], found.state["val_loss"]) == (7, 700, 2.5)
    assert all(torch.equal(model[name], tensor) for name, tensor in found.model_tensors().items())
    assert found.optimizer_tensors() == {"a.weight/step": torch.tensor(1.0)}


def test_the_newest_and_the_best_are_kept(layout):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        save(layout, step, val_loss=loss, keep=2)
    assert layout.saved_steps() == [2, 4, 5]
    assert checkpoint.best_step(layout) == 2


def test_of_equal_losses_the_later_is_best(layout):
    save(layout, 1, val_loss=1.0)
    save(layout, 2, val_loss=1.0)
    assert checkpoint.best_step(layout) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "hashes.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(layout, name, damage, caplog):
    save(layout, 1)
    save(layout, 2)
    path = layout.checkpoint(2) / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    with pytest.raises(CheckpointError, match="train again with --resume"):
        checkpoint.read(layout.checkpoint(2))
    assert checkpoint.newest(layout).step == 1
    assert "skipping a checkpoint" in caplog.text


def test_what_a_kill_left_half_written_is_cleared_by_the_next_save(layout):
    save(layout, 1)
    torn = layout.checkpoints / ".step-00000002.tmp"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest(layout).step == 1
    save(layout, 3)
    assert not torn.exists()


def test_a_full_disk_is_told_before_anything_is_written(layout, monkeypatch):
    save(layout, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 10))
    with pytest.raises(DiskFullError, match="go on with --resume") as caught:
        save(layout, 2)
    assert caught.value.exit_code == 4
    assert checkpoint.newest(layout).step == 1
    assert [entry.name for entry in layout.checkpoints.iterdir()] == ["step-00000001"]


def test_a_checkpoint_of_another_format_is_refused(layout):
    save(layout, 1)
    folder = layout.checkpoint(1)
    state = json.loads((folder / "state.json").read_text()) | {"format": 99}
    (folder / "state.json").write_text(json.dumps(state))
    hashes = json.loads((folder / "hashes.json").read_text())
    hashes["state.json"] = hash_file(folder / "state.json")
    (folder / "hashes.json").write_text(json.dumps(hashes))
    with pytest.raises(CheckpointError, match="format 99 and this packtrain reads 1"):
        checkpoint.read(folder)


def test_weights_of_another_shape_are_refused_by_name(layout):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 5, bias=False)})
    with pytest.raises(CheckpointError, match=r"a.weight has shape \[5, 4\] and the model needs \[5, 3\]"):
        checkpoint.load_weights(model, {"a.weight": torch.zeros(5, 4)}, layout.folder)
    with pytest.raises(CheckpointError, match="c: the model has no such weight"):
        checkpoint.load_weights(model, {"a.weight": torch.zeros(5, 3), "c": torch.zeros(1)}, layout.folder)
    with pytest.raises(CheckpointError, match=r"a.weight: the checkpoint lacks it"):
        checkpoint.load_weights(model, {}, layout.folder)


def test_a_run_that_is_not_there_is_said_to_be(tmp_path):
    with pytest.raises(RunError, match="does not exist; give a folder that `packtrain train"):
        existing_run(tmp_path / "none")
    with pytest.raises(RunError, match="holds no run"):
        existing_run(tmp_path)


def test_a_second_writer_is_refused_and_the_lock_goes_with_its_holder(layout):
    with locked(layout):
        with pytest.raises(RunError, match="in use by another process"), locked(layout):
            pass
    with locked(layout):
        assert layout.folder.is_dir()
