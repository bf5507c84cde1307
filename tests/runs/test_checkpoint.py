"""Checkpoints: whole or recognised as torn, the right ones kept, nothing lost on a full disk."""

import json
import shutil
from collections import namedtuple

import pytest
import torch

from packtrain.data.atomic import hash_file
from packtrain.errors import CheckpointError, DiskFullError, RunError
from packtrain.parallel.ranks import Ranks
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout, existing_run, locked
from packtrain.runs.retention import Retention, best_step
from packtrain.runs.tensors import Part
from packtrain.runs.writer import CheckpointWriter

TENSORS = "shard-00001-model-00001-of-00001.safetensors"


@pytest.fixture
def layout(tmp_path):
    made = RunLayout(tmp_path / "run")
    made.folder.mkdir()
    return made


def save(layout, step, *, val_loss=None, keep=3, keep_every=0):
    generator = torch.Generator().manual_seed(step)
    model = {"a.weight": torch.randn(5, 3, generator=generator), "b": torch.randn(2, generator=generator)}
    state = {"step": step, "tokens": step * 100, "val_loss": val_loss}
    tensors = {**model, "a.weight/step": torch.tensor(1.0)}
    with CheckpointWriter(layout, Ranks(), Retention(keep, keep_every)) as writer:
        writer.save({name: Part.whole(tensor) for name, tensor in tensors.items()}, state)
        writer.wait()
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
    assert best_step(layout) == 2


def test_of_equal_losses_the_later_is_best(layout):
    save(layout, 1, val_loss=1.0)
    save(layout, 2, val_loss=1.0)
    assert best_step(layout) == 2


@pytest.mark.parametrize("name", [TENSORS, "state.json", "hashes.json"])
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
    (torn / TENSORS).write_bytes(b"half")
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
    with pytest.raises(CheckpointError, match="format 99 and this packtrain reads up to 2"):
        checkpoint.read(folder)


def test_weights_of_another_shape_are_refused_by_name(layout):
    save(layout, 1)
    found = checkpoint.newest(layout)
    with pytest.raises(CheckpointError, match=r"a.weight: it has shape \[5, 3\] there and the model needs \[5, 4\]"):
        checkpoint.check_fits(found, {"a.weight": torch.Size([5, 4]), "b": torch.Size([2])})
    with pytest.raises(CheckpointError, match="b: the model has no such weight"):
        checkpoint.check_fits(found, {"a.weight": torch.Size([5, 3])})
    with pytest.raises(CheckpointError, match=r"c: the checkpoint lacks it"):
        checkpoint.check_fits(found, {"a.weight": torch.Size([5, 3]), "b": torch.Size([2]), "c": torch.Size([1])})


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
