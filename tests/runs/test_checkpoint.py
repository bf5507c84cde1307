"""Checkpoints: whole or recognised as torn, the right ones kept, nothing lost on a full disk."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import safetensors.torch
import torch

from packtrain.errors import CheckpointError, DiskFullError, RunError
from packtrain.parallel.parts import StoredTensor, TensorPart, list_tensors, read_parts
from packtrain.parallel.ranks import Ranks
from packtrain.runs import checkpoint, tensors
from packtrain.runs.layout import RunLayout, find_run, lock_run
from packtrain.runs.retention import Retention, find_best_step
from packtrain.runs.writer import CheckpointWriter
from packtrain.storage.atomic import hash_file

TENSORS = "rank-00000-00000.safetensors"


@pytest.fixture
def layout(tmp_path):
    made = RunLayout(tmp_path / "run")
    made.folder.mkdir()
    return made


def save(layout, step, *, val_loss=None, keep=3, keep_every=0):
    generator = torch.Generator().manual_seed(step)
    model = {"a.weight": torch.randn(5, 3, generator=generator), "b": torch.randn(2, generator=generator)}
    state = {"step": step, "tokens": step * 100, "val_loss": val_loss}
    saved = {**model, "a.weight/step": torch.tensor(1.0)}
    with CheckpointWriter(layout, Ranks(), Retention(keep, keep_every)) as writer:
        writer.save({name: TensorPart.whole(tensor) for name, tensor in saved.items()}, state)
        writer.wait()
    return model


def test_what_was_saved_is_read_back(layout):
    model = save(layout, 7, val_loss=2.5)
    found = checkpoint.find_newest(layout)
    assert (found.step, found.state["tokens"], found.state["val_loss"]) == (7, 700, 2.5)
    expected = {**model, "a.weight/step": torch.tensor(1.0)}
    assert found.stored.keys() == expected.keys()
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.read_whole().items())
    assert found.read_whole(only_weights=True).keys() == model.keys()


def test_the_newest_and_the_best_are_kept(layout):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        save(layout, step, val_loss=loss, keep=2)
    assert layout.saved_steps() == [2, 4, 5]
    assert find_best_step(layout) == 2


def test_a_torn_checkpoint_of_a_later_step_takes_no_whole_ones_place(layout):
    """As a run leaves them that passed over its newest and was stopped before that step."""
    for step in (1, 2, 4):
        save(layout, step, keep=2)
    (layout.checkpoint(4) / TENSORS).write_bytes(b"torn")
    save(layout, 3, keep=1)
    assert layout.saved_steps() == [3, 4]
    assert checkpoint.find_newest(layout).step == 3
    save(layout, 4, keep=1)
    assert layout.saved_steps() == [4] and checkpoint.find_newest(layout).step == 4


def test_of_equal_losses_the_later_is_best(layout):
    save(layout, 1, val_loss=1.0)
    save(layout, 2, val_loss=1.0)
    assert find_best_step(layout) == 2


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
    assert checkpoint.find_newest(layout).step == 1
    assert "skipping a damaged checkpoint" in caplog.text


def test_what_a_kill_left_half_written_is_cleared_by_the_next_save(layout):
    save(layout, 1)
    torn = layout.checkpoints / ".step-00000002.tmp"
    torn.mkdir()
    (torn / TENSORS).write_bytes(b"half")
    assert checkpoint.find_newest(layout).step == 1
    save(layout, 3)
    assert not torn.exists()


def test_a_full_disk_is_told_before_anything_is_written(layout, monkeypatch):
    save(layout, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 10))
    with pytest.raises(DiskFullError, match="continue with --resume") as caught:
        save(layout, 2)
    assert caught.value.exit_code == 4
    assert checkpoint.find_newest(layout).step == 1
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
    found = checkpoint.find_newest(layout)
    with pytest.raises(
        CheckpointError, match=r"a.weight: the checkpoint has shape \[5, 3\] and the model has \[5, 4\]"
    ):
        checkpoint.check_fits(found, {"a.weight": torch.Size([5, 4]), "b": torch.Size([2])})
    with pytest.raises(CheckpointError, match="b: the model does not have it"):
        checkpoint.check_fits(found, {"a.weight": torch.Size([5, 3])})
    with pytest.raises(CheckpointError, match=r"c: the checkpoint does not have it"):
        checkpoint.check_fits(found, {"a.weight": torch.Size([5, 3]), "b": torch.Size([2]), "c": torch.Size([1])})


def test_a_run_that_is_not_there_is_said_to_be(tmp_path):
    with pytest.raises(RunError, match="does not exist; give a folder that `packtrain train"):
        find_run(tmp_path / "none")
    with pytest.raises(RunError, match="does not contain a run"):
        find_run(tmp_path)


def test_a_second_writer_is_refused_and_the_lock_goes_with_its_holder(layout):
    with lock_run(layout):
        with pytest.raises(RunError, match="in use by another process"), lock_run(layout):
            pass
    with lock_run(layout):
        assert layout.folder.is_dir()


def test_a_save_may_go_on_until_the_tensors_change(layout):
    tensor = torch.arange(1_000_000.0)
    with CheckpointWriter(layout, Ranks(), Retention(1)) as writer:
        writer.save({"a": TensorPart.whole(tensor)}, {"step": 1, "val_loss": None})
        writer.wait_free()
        tensor.zero_()
        writer.wait()
    assert torch.equal(checkpoint.find_newest(layout).read_whole(only_weights=True)["a"], torch.arange(1_000_000.0))


def test_every_nth_stays(layout):
    for step in range(1, 8):
        save(layout, step, keep=1, keep_every=3)
    assert layout.saved_steps() == [3, 6, 7]


@pytest.mark.parametrize("num_writers", [1, 2, 3, 7])
@pytest.mark.parametrize("num_readers", [1, 2, 5])
def test_parts_are_read_in_any_division(tmp_path, monkeypatch, num_writers, num_readers):
    monkeypatch.setattr(tensors, "FILE_BYTES", 100)
    whole = {
        "rows": torch.randn(6, 5, generator=torch.Generator().manual_seed(0)),
        "bytes": torch.arange(13, dtype=torch.uint8),
        "number": torch.tensor(3.5),
        "one": torch.zeros(1, 1),
    }

    def parts_of(number, count, make):
        parts = {}
        for name, tensor in whole.items():
            if tensor.dim():
                size = -(-tensor.shape[0] // count)
                offset = torch.Size([min(number * size, tensor.shape[0]), *[0] * (tensor.dim() - 1)])
                parts[name] = TensorPart(make(tensor[number * size : (number + 1) * size]), tensor.shape, offset)
            elif number == 0 or make is not torch.clone:
                parts[name] = TensorPart.whole(make(tensor))
        return parts

    for rank in range(num_writers):
        tensors.write_parts(tmp_path, parts_of(rank, num_writers, torch.clone), rank=rank)
    assert list_tensors(tmp_path) == {n: StoredTensor(t.shape, t.dtype) for n, t in whole.items()}
    for number in range(num_readers):
        wanted = parts_of(number, num_readers, torch.empty_like)
        read_parts(tmp_path, wanted)
        for name, part in parts_of(number, num_readers, lambda tensor: tensor).items():
            assert torch.equal(wanted[name].tensor, part.tensor), name


def test_a_file_of_another_checkpoint_is_not_read(layout):
    save(layout, 1)
    save(layout, 2)
    shutil.copy(layout.checkpoint(1) / TENSORS, layout.checkpoint(2) / "rank-00001-00000.safetensors")
    with pytest.raises(CheckpointError, match=r"rank-00001-00000.safetensors does not belong to this checkpoint"):
        checkpoint.read(layout.checkpoint(2))


def test_the_format_of_before_is_read(layout):
    """Two files written whole, as packtrain 0.1.0 did."""
    folder = layout.checkpoint(4)
    folder.mkdir(parents=True)
    safetensors.torch.save_file({"a.weight": torch.ones(2, 3)}, folder / "model.safetensors")
    safetensors.torch.save_file({"a.weight/exp_avg": torch.zeros(2, 3)}, folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps({"format": 1, "step": 4, "val_loss": None}))
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    (folder / "hashes.json").write_text(json.dumps({name: hash_file(folder / name) for name in names}))
    found = checkpoint.find_newest(layout)
    weights = found.read_whole(only_weights=True)
    assert {name: tensor.tolist() for name, tensor in weights.items()} == {"a.weight": [[1.0] * 3] * 2}
    assert found.read_whole().keys() == {"a.weight", "a.weight/exp_avg"}


@pytest.mark.slow
def test_a_file_that_the_disk_cuts_short_leaves_the_checkpoint_before(layout):
    """A limit on the size of files, in a process of its own, fails as a full disk does."""
    save(layout, 1)
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from packtrain.errors import DiskFullError\n"
        "from packtrain.runs.layout import RunLayout\n"
        "from tests.runs.saved import save_alone\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    save_alone(RunLayout(Path(sys.argv[1])), {'a': torch.ones(100_000)}, {'step': 2})\n"
        "except DiskFullError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, layout.folder], capture_output=True, text=True, check=True)
    assert "free some space or lower checkpoint.keep" in done.stdout
    assert layout.saved_steps() == [1]
    assert [entry.name for entry in layout.checkpoints.iterdir()] == ["step-00000001"]
    assert checkpoint.find_newest(layout).step == 1
