"""Processes change nothing but speed: the same global batches, losses and weights within float32's rounding."""

import subprocess
import sys

import pytest
import torch

from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train.run import train
from tests.train.conftest import TINY


def launch(dataset, folder, num_processes, *settings):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [*torchrun, "-m", "packtrain", "train", "demo", *TINY, f"data.dataset={dataset}", *settings]
    subprocess.run([*command, "--resume", "--run", str(folder)], check=True, capture_output=True, timeout=120)


def test_two_processes_are_one(dataset, tiny, tmp_path):
    train(tiny("train.micro_batch_size=2"), tmp_path / "one", resume=False)
    launch(dataset, tmp_path / "two", 2, "train.micro_batch_size=2")
    one, two = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "grad_norm", "val_loss", "val_bpb"):
            assert a.get(key) == pytest.approx(b.get(key), rel=1e-5)
        assert a.get("tokens") == b.get("tokens")
    weights = [checkpoint.newest(RunLayout(tmp_path / name)).model_tensors() for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)


def test_a_run_of_one_process_goes_on_with_two(dataset, tiny, tmp_path):
    train(tiny(), tmp_path / "whole", resume=False)
    train(tiny("train.steps=10", "checkpoint.keep=9"), tmp_path / "moved", resume=False)
    for step in (6, 8, 10):
        path = RunLayout(tmp_path / "moved").checkpoint(step)
        path.rename(path.with_name(f"gone-{step}"))
    launch(dataset, tmp_path / "moved", 2)
    whole, moved = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "moved"))
    for a, b in zip(whole, moved, strict=True):
        assert a.get("loss") == pytest.approx(b.get("loss"), rel=1e-5)
