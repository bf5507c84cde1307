"""A budget for activations changes no result; what does not fit is refused with a setting that would."""

import json
import re
import subprocess
import sys

import pytest
import torch

from packtrain.config.load import load_run_config
from packtrain.errors import ConfigError, DeviceError
from packtrain.runs.metrics import read_jsonl
from packtrain.train import memory
from packtrain.train.memory import count_recomputed, explain_out_of_memory
from packtrain.train.run import train
from tests.train.conftest import TINY, place


def losses(folder):
    return [line["loss"] for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("settings", [(), ("train.micro_batch_size=2",), ("train.precision=bf16",)])
def test_a_run_within_a_budget_is_the_same_run(tiny, tmp_path, settings):
    # A budget implies one lane.
    shared = ("train.steps=3", "evaluate.every=0", "parallel.lanes=1", *settings)
    train(tiny(*shared), tmp_path / "free", resume=False)
    budget = tiny(*shared, "train.activation_gb=0.0001")
    assert count_recomputed(budget, place(budget.train.micro_batch_size)) > 0
    train(budget, tmp_path / "tight", resume=False)
    # Accumulated gradients are added in another order.
    assert losses(tmp_path / "tight") == pytest.approx(losses(tmp_path / "free"), rel=1e-5)


def test_a_budget_that_cannot_be_kept_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"write train\.activation_gb=0\.00\d, or lower"):
        train(tiny("train.activation_gb=1e-6"), tmp_path / "run", resume=False)


@pytest.mark.slow
def test_an_allocation_that_fails_names_the_micro_batch_that_fits(dataset, tmp_path):
    """The process's memory is limited so that the model fits, but a large micro-batch does not."""
    settings = [*TINY, f"data.dataset={dataset}", "model.hidden_size=256", "model.intermediate_size=4096"]
    settings += ["data.seq_len=128", "train.global_batch_tokens=65536", "train.micro_batch_size=512"]
    script = (
        "import resource, sys; from packtrain.train import loop; from packtrain.cli.main import main\n"
        "def limited(*a):\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + 10**9, resource.RLIM_INFINITY))\n"
        "    return check(*a)\n"
        "check, loop.check_ids = loop.check_ids, limited\n"
        "main()"
    )
    command = [sys.executable, "-c", script, "train", "demo", *settings, "--run", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2, said
    assert "train.micro_batch_size=512 rows of 128 tokens need more memory" in said
    assert "write train.micro_batch_size=" in said and "the largest that fits by the planner's estimate" in said
    assert "Traceback" not in done.stderr


@pytest.mark.very_slow
@pytest.mark.parametrize(("rows", "precision"), [(4, "fp32"), (1, "bf16")])
def test_a_sharded_step_allocates_what_the_planner_computes(rows, precision):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "tests.train.allocations", str(rows), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    measured, computed = json.loads(done.stdout.splitlines()[-1])
    assert computed == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        # As the driver and its libraries say it, whose memory is not torch's.
        RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_every_form_of_it_gives_the_same_advice(tiny, error):
    config = tiny("train.micro_batch_size=8")
    with pytest.raises(DeviceError, match=r"write train\.micro_batch_size=4"):
        with explain_out_of_memory(config, place(8)):
            raise error
    with pytest.raises(DeviceError, match="not even one row fits"):
        with explain_out_of_memory(config, place(1)):
            raise error


@pytest.mark.parametrize(
    ("sharded", "world_size", "remedy"),
    [
        ([], 4, r"write parallel\.mode=fsdp and train\.micro_batch_size=1, which fits by that estimate"),
        (
            ["parallel.mode=fsdp", "parallel.shard_size=2"],
            8,
            r"write parallel\.shard_size=8 and train\.micro_batch_size=1",
        ),
        (["parallel.mode=fsdp"], 2, r"not even one row fits; set train\.activation_gb"),
        ([], 1, r"not even one row fits; set train\.activation_gb"),
    ],
)
def test_a_model_of_which_only_shards_fit_is_to_be_sharded(monkeypatch, sharded, world_size, remedy):
    """If a copy of it with optimizer state, or half of one, needs more memory than a process has."""
    monkeypatch.setattr(memory, "memory_bytes", lambda *_: 5 * 10**9)
    config = load_run_config("llama2-437m", ["train.micro_batch_size=1", *sharded]).config
    with pytest.raises(DeviceError, match=remedy):
        with explain_out_of_memory(config, place(1, world_size=world_size, is_sharded=bool(sharded))):
            raise MemoryError


def test_lanes_are_for_one_process_alone(monkeypatch):
    """A second lane needs gradients of its own; several processes have one lane each, and memory for larger micro-batches."""
    config = load_run_config("llama2-437m", ["train.micro_batch_size=8"]).config
    monkeypatch.setattr(memory, "memory_bytes", lambda *_: 15 * 10**9)
    found = {}
    for world_size in (1, 2):
        with pytest.raises(DeviceError) as caught:
            with explain_out_of_memory(config, place(8, world_size=world_size)):
                raise MemoryError
        found[world_size] = int(re.search(r"micro_batch_size=(\d+), the largest", str(caught.value))[1])
    assert found == {1: 2, 2: 4}


def test_other_errors_stay_what_they_are(tiny):
    with pytest.raises(RuntimeError, match="something else"):
        with explain_out_of_memory(tiny(), place(8)):
            raise RuntimeError("something else")
