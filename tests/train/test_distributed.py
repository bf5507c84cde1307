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
    subprocess.run([*command, "--resume", "--run-dir", str(folder)], check=True, capture_output=True, timeout=120)


def figures(lines):
    """What must not depend on the number of processes."""
    kept = ("step", "tokens", "loss", "grad_norm", "val_loss", "val_bpb")
    return [{key: line[key] for key in kept if key in line} for line in lines]


def test_two_processes_are_one(dataset, tiny, tmp_path):
    train(tiny("train.micro_batch_size=2"), tmp_path / "one", resume=False)
    launch(dataset, tmp_path / "two", 2, "train.micro_batch_size=2")
    one, two = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert figures(one) == [pytest.approx(line, rel=1e-5) for line in figures(two)]
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
    assert figures(whole) == [pytest.approx(line, rel=1e-5) for line in figures(moved)]
