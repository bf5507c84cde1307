"""Do the bytes that a plan counts for the exchanges of a step equal what a step hands to the library that sends them?"""

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from tests.train.conftest import TINY, tiny
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from packtrain.parallel.ranks import Ranks
from packtrain.plan.exchange import Division, list_collectives
from packtrain.train.preflight import open_training_data
from packtrain.train.setup import build_parts
from packtrain.train.step import train_step

assert tiny  # a fixture

CPU = torch.device("cpu")
# The operations of torch's dispatcher that send, and which tensor of theirs is the whole one: given or returned.
SENDING = {
    "c10d::allreduce_": ("all-reduce", lambda given, _: given[0][0]),
    "c10d::_allgather_base_": ("all-gather", lambda given, _: given[0]),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", lambda given, _: given[1]),
    "_c10d_functional::all_gather_into_tensor": ("all-gather", lambda _, made: made),
    "_c10d_functional::all_reduce": ("all-reduce", lambda given, _: given[0]),
}
# A loss, a norm, a flag: what `list_collectives` leaves out.
FEW_BYTES = 64


class Recorder(TorchDispatchMode):
    """Counts the bytes of every collective, by its kind."""

    def __init__(self):
        super().__init__()
        self.total = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        name = function._schema.name
        if name in SENDING:
            kind, choose = SENDING[name]
            size = choose(args, made).nbytes
            if size > FEW_BYTES:
                self.total[kind] += size
        else:
            assert "c10d" not in name or name.endswith(("wait_tensor", "_wrap_tensor_autograd")), name
        return made


def pass_bucket(recorder, bucket):
    """In place of an all-reduce of DistributedDataParallel."""
    recorder.total["all-reduce"] += bucket.buffer().nbytes
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


@pytest.fixture
def pretend():
    """Makes this process the first of several, whose collectives do nothing."""

    def start(world_size):
        dist.init_process_group("fake", rank=0, world_size=world_size)
        return Ranks(0, 0, world_size, world_size)

    yield start
    dist.destroy_process_group()


def step_with(parts, placement):
    train_step(parts.trained, parts.optimizer, next(parts.loader), placement, grad_clip=1.0)


@pytest.mark.filterwarnings("ignore:.*is deprecated. Please use:FutureWarning")
@pytest.mark.parametrize(
    ("world_size", "num_shards", "settings"),
    [
        (4, 1, ("parallel.mode=ddp",)),
        (4, 4, ("parallel.mode=fsdp",)),
        (4, 2, ("parallel.mode=fsdp", "parallel.shard_size=2")),
        (4, 4, ("parallel.mode=fsdp", "train.precision=bf16", "model.tie_word_embeddings=false")),
        (4, 1, ("parallel.mode=ddp", "optim.name=muon")),
        (4, 4, ("parallel.mode=fsdp", "optim.name=muon", "train.precision=bf16")),
        (4, 2, ("parallel.mode=fsdp", "parallel.shard_size=2", "optim.name=normuon")),
    ],
)
def test_the_bytes_of_a_step_are_those_of_the_plan(tiny, pretend, world_size, num_shards, settings):
    config = tiny("train.micro_batch_size=1", "train.global_batch_tokens=512", *settings)
    ranks = pretend(world_size)
    parts = build_parts(config, open_training_data(config), ranks=ranks, device=CPU, checkpoint=None)
    recorder = Recorder()
    if isinstance(parts.trained, DistributedDataParallel):
        # It waits for results that a group which does nothing has not.
        parts.trained.register_comm_hook(recorder, pass_bucket)
    with parts.loader:
        # In its second step, DistributedDataParallel tells the others the order of its buckets.
        for _ in range(2):
            step_with(parts, parts.placement)
        recorder.total.clear()
        with recorder:
            step_with(parts, parts.placement)
    wanted = Counter()
    for each in list_collectives(
        config.model,
        config.optim.name,
        Division(world_size, num_shards),
        num_micro_batches=512 // 32 // world_size,
        precision=parts.placement.precision.name,
        device_type="cpu",
    ):
        # gloo gathers where NCCL exchanges.
        wanted["all-gather" if each.kind == "all-to-all" else each.kind] += each.total_bytes
    assert recorder.total == wanted


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_bytes_that_connections_send_are_those_of_the_plan(dataset, tmp_path, optimizer):
    settings = [*TINY, f"data.dataset={dataset}", "model.hidden_size=128", "model.intermediate_size=256"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "tests.plan.sent_bytes", tmp_path, *settings, f"optim.name={optimizer}"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=200)
    for place in tmp_path.glob("rank-*.json"):
        for mode, figures in json.loads(place.read_text()).items():
            # Losses, norms and what gloo says before each tensor come on top.
            assert figures["planned"] <= figures["sent"] <= 1.02 * figures["planned"], (mode, figures)
    assert len(list(tmp_path.glob("rank-*.json"))) == 2
