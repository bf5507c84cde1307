"""Run by torchrun in the tests of `test_exchange`: the bytes that this process's connections sent in one step, from the system.

`python -m tests.plan.sent_bytes FOLDER KEY=VALUE ...`: each rank writes sent and planned bytes into FOLDER/rank-N.json.
"""

import json
import os
import socket
import struct
import sys
from pathlib import Path

import torch

from packtrain.config.load import load_run_config
from packtrain.parallel.ranks import join_processes
from packtrain.plan.exchange import Division, list_collectives
from packtrain.train.preflight import open_training_data
from packtrain.train.setup import build_parts
from packtrain.train.step import train_step

# From linux/tcp.h: where tcpi_bytes_sent is in tcp_info.
_BYTES_SENT = 200
# What gloo sends of a tensor of one byte among n: of a reduce-scatter as much as of an all-reduce.
SHARES = {"all-reduce": 2, "reduce-scatter": 2, "all-gather": 1, "all-to-all": 1}


def sent_bytes():
    total = 0
    for place in Path("/proc/self/fd").iterdir():
        try:
            if not str(place.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(place.name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            # A pipe of the launcher, or the descriptor of this very listing.
            continue
        total += struct.unpack_from("Q", info, _BYTES_SENT)[0] if len(info) >= _BYTES_SENT + 8 else 0
    return total


def measure(config, ranks, num_shards):
    """Bytes that a step sent, and that a plan says."""
    datasets = open_training_data(config)
    parts = build_parts(config, datasets, ranks=ranks, device=torch.device("cpu"), checkpoint=None)
    with parts.loader:
        for _ in range(3):
            ranks.barrier()
            before = sent_bytes()
            train_step(parts.trained, parts.optimizer, next(parts.loader), parts.placement, grad_clip=1.0)
        sent = sent_bytes() - before
    planned = list_collectives(
        config.model,
        config.optim.name,
        Division(ranks.world_size, num_shards),
        num_micro_batches=config.rows_per_step // ranks.world_size // parts.placement.micro_batch_size,
        precision="fp32",
        device_type="cpu",
    )
    share = (ranks.world_size - 1) / ranks.world_size
    return {"sent": sent, "planned": sum(share * SHARES[each.kind] * each.total_bytes for each in planned)}


def main():
    folder, *settings = sys.argv[1:]
    with join_processes(torch.device("cpu")) as ranks:
        found = {}
        for mode, num_shards in (("ddp", 1), ("fsdp", ranks.world_size)):
            config = load_run_config("demo", [*settings, f"parallel.mode={mode}"]).config
            found[mode] = measure(config, ranks, num_shards)
        (Path(folder) / f"rank-{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
