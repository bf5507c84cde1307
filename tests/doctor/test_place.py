"""Are a full disk, a step without memory and a tracker that cannot be reached found, with what to do?"""

import shutil
import socket
from pathlib import Path

import pytest

from packtrain.config.load import load_run_config
from packtrain.doctor.place import check_disk, check_memory, check_trackers
from packtrain.plan.memory import checkpoint_bytes
from packtrain.train.run import train
from tests.train.conftest import TINY


def config(*settings):
    return load_run_config("demo", [*TINY, *settings]).config


def test_a_full_disk_is_a_fault_that_says_how_much_is_missing(tmp_path, monkeypatch):
    one = checkpoint_bytes(config())
    usage = shutil.disk_usage(tmp_path)
    # Ten steps, one saved in two: five at most, and there is room for three.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(one * 3.1)))
    said = check_disk(config(), tmp_path / "run", 10)
    assert said.state == "fault"
    assert "5 checkpoints" in said.says and "too little" in said.says
    assert said.fix.startswith("write checkpoint.keep=1, which takes")
    assert check_disk(config("checkpoint.keep=1"), tmp_path / "run", 10).state == "ok"
    assert check_disk(config("checkpoint.every=0"), tmp_path / "run", 10).state == "ok"
    assert check_disk(config("checkpoint.keep=1", "checkpoint.keep_every=2"), tmp_path / "run", 100).state == "fault"
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_has_the_computed_size_and_those_that_are_there_count(dataset, tmp_path, monkeypatch):
    settings = [f"data.dataset={dataset}", "train.steps=2", "evaluate.every=0"]
    train(config(*settings), tmp_path / "run", resume=False)
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    size = sum(file.stat().st_size for file in saved.iterdir())
    assert size == pytest.approx(checkpoint_bytes(config()), rel=0.05)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size // 2))
    assert check_disk(config(*settings), tmp_path / "run", 2).state == "ok"
    assert check_disk(config(*settings), tmp_path / "another", 2).state == "fault"


def test_a_folder_that_cannot_be_written_to_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda *_: False)
    said = check_disk(config(), tmp_path / "run", 10)
    assert said.state == "fault" and f"{tmp_path} cannot be written to" in said.says


def test_a_step_that_does_not_fit_in_memory_is_a_fault():
    said = check_memory(config("train.global_batch_tokens=32_000_000", "train.micro_batch_size=1_000_000"))
    assert said.state == "fault" and said.fix.startswith("write train.micro_batch_size=")
    assert check_memory(config()).state == "ok"


def test_trackers_are_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wanted = config("track.wandb=true")
    assert check_trackers(config()).state == "ok"
    with socket.create_server(("127.0.0.1", 0)) as service:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{service.getsockname()[1]}")
        said = check_trackers(wanted)
        assert said.state == "fault" and "wandb login" in said.fix
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        assert check_trackers(wanted).state == "ok"
    said = check_trackers(wanted)
    assert said.state == "fault" and "does not answer" in said.says and "WANDB_MODE=offline" in said.fix
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert check_trackers(wanted).state == "ok"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install 'packtrain[wandb]'" in check_trackers(wanted).fix
