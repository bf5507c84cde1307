"""Run by torchrun in the tests of `test_memory`: the peak allocation of a sharded step, and what the planner computes for it."""

import json
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from packtrain.config.load import load_run_config
from packtrain.data.feed.loader import Batch, Rows
from packtrain.data.feed.position import LoaderState
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.init import build
from packtrain.model.roles import roles
from packtrain.optim.build import build_optimizer
from packtrain.parallel.ranks import join_processes
from packtrain.plan.memory import memory, peak_bytes
from packtrain.train.device import resolve_precision
from packtrain.train.setup import SHARDING
from packtrain.train.sharding import shard_model
from packtrain.train.step import Placement, train_step
from tests.profiled import highest_bytes


def main(rows: int, precision_name: str) -> None:
    """Prints both in bytes, of the main rank."""
    config = load_run_config("llama2-15m", [f"train.precision={precision_name}"]).config
    device, seq_len = torch.device("cpu"), config.data.seq_len
    precision = resolve_precision(config.train, device)
    with join_processes(torch.device("cpu")) as ranks:
        placement = Placement(device, precision, rows, ranks, is_sharded=True)
        model = build(config.model, seed=0, device="meta")
        use_cpu_kernels(model)
        shard_model(model, config, placement, is_new=True)
        optimizer = build_optimizer(
            config.optim, dict(model.named_parameters()), roles(model), precision.dtype, SHARDING
        )
        tokens = torch.randint(config.model.vocab_size, (rows, seq_len + 1))
        state = LoaderState("", "", 0, 0, 0)
        batch = Batch(Rows(tokens[:, :-1], tokens[:, 1:]), state=state, num_targets=2 * rows * seq_len)

        def step() -> None:
            train_step(model, optimizer, batch, placement, grad_clip=1.0)

        step()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            step()
        parts = memory(config.model, rows, seq_len, config.optim.name, precision.name, num_shards=ranks.world_size)
        # The profiler sees neither what exists before the step nor what gloo's own threads allocate.
        highest = highest_bytes(record) + parts["weights"] + parts["optimizer"]
        if ranks.is_main:
            print(json.dumps([highest, peak_bytes(parts, accumulates=False) - parts["exchange"]]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
