"""Peak memory of training steps on the CPU, next to what `packtrain plan` computes for them.

    python -m benchmarks.memory llama2-437m train.micro_batch_size=1 train.activation_gb=0.2 train.precision=fp32
    python -m benchmarks.memory llama2-15m train.precision=fp32 --processes 2

Takes a preset and settings as `train` does. A separate process builds model and optimizer as `train` does and takes steps of
one micro-batch of random tokens. Its peak is the kernel's figure for the process (VmHWM, Linux). With more processes, the model
is sharded over them, and the figures are those of the process that takes most. The output also shows the memory of a process before it
builds anything, next to what is computed for it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a line, and return its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="threads of each process")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    words = json.dumps([options.preset, options.settings, options.steps, options.threads])
    count = str(options.processes)
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(f"from benchmarks.memory import steps\nsteps(*{words})\n")
        script.flush()
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
        command = [sys.executable, *(launcher if options.processes > 1 else []), script.name]
        found = dict(
            os.environ, PYTHONPATH=os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        )
        child = subprocess.run(command, capture_output=True, text=True, check=True, env=found)
    figures = json.loads(child.stdout.splitlines()[-1])
    share = figures["tensor_bytes"] / (figures["measured_bytes"] - figures["base_bytes"]) - 1
    print(
        f"{options.preset}, {figures['rows']} x {figures['seq_len']}, {figures['optimizer']}, {figures['precision']}, "
        f"{figures['shards']} shards, {figures['blocks_computed_again']} blocks computed again: "
        f"measured {figures['measured_bytes'] / 1e9:.3f} GB, {figures['base_bytes'] / 1e9:.3f} of them before the model; "
        f"computed {figures['computed_bytes'] / 1e9:.3f} GB "
        f"({figures['computed_bytes'] / figures['measured_bytes'] - 1:+.1%}, without what was there before {share:+.1%})"
    )
    return figures


def steps(preset: str, settings: list[str], count: int, threads: int) -> None:
    """In the child process: take the steps, then print one JSON line."""
    import torch

    from packtrain.config.load import load_run_config
    from packtrain.data.feed.loader import Batch, Rows
    from packtrain.data.feed.position import LoaderState
    from packtrain.model.cpu.blocks import use_cpu_kernels
    from packtrain.model.init import build
    from packtrain.model.roles import roles
    from packtrain.optim.build import build_optimizer
    from packtrain.parallel.lanes import split_into_lanes
    from packtrain.parallel.ranks import join_processes
    from packtrain.plan.memory import needed_bytes, process_bytes
    from packtrain.train.device import check_precision, keep_freed_memory, resolve_lanes, resolve_precision
    from packtrain.train.memory import count_recomputed
    from packtrain.train.setup import SHARDING
    from packtrain.train.sharding import shard_model
    from packtrain.train.step import Placement, train_step

    config, cpu = load_run_config(preset, settings).config, torch.device("cpu")
    rows, seq_len = config.train.micro_batch_size, config.data.seq_len
    torch.set_num_threads(threads)
    keep_freed_memory(cpu, is_tight=config.train.activation_gb is not None)
    check_precision(config.train, cpu)
    precision = resolve_precision(config.train, cpu)
    with join_processes(torch.device("cpu")) as ranks:
        base = _peak()
        is_sharded = ranks.world_size > 1
        placement = Placement(cpu, precision, rows, ranks, is_sharded)
        model = build(config.model, seed=config.train.seed, device="meta" if is_sharded else cpu)
        use_cpu_kernels(model)
        if is_sharded:
            shard_model(model, config, placement, is_new=True)
        again = count_recomputed(config, placement)
        model.recompute(again)
        optimizer = build_optimizer(
            config.optim, dict(model.named_parameters()), roles(model), precision.dtype, SHARDING
        )
        optimizer.make_states()
        lanes = resolve_lanes(config, rows, cpu, is_alone=not is_sharded, is_compiled=False)
        trained = split_into_lanes(model, lanes)
        generator = torch.Generator().manual_seed(ranks.rank)
        tokens = torch.randint(config.model.vocab_size, (rows, seq_len + 1), generator=generator)
        num_targets = rows * seq_len * ranks.world_size
        state = LoaderState("", "", 0, 0, 0)
        batch = Batch(Rows(tokens[:, :-1], tokens[:, 1:]), state=state, num_targets=num_targets)
        for _ in range(count):
            train_step(trained, optimizer, batch, placement, grad_clip=config.train.grad_clip)
        peak, base = max(ranks.gather((_peak(), base)))
        num_shards = ranks.world_size
        computed = needed_bytes(config, rows, precision.name, "cpu", accumulates=False, num_shards=num_shards)
        assert computed is not None, "the steps above were refused"
        figures = {
            "rows": rows,
            "seq_len": seq_len,
            "optimizer": config.optim.name,
            "precision": precision.name,
            "shards": num_shards,
            "blocks_computed_again": again,
            "base_bytes": base,
            "measured_bytes": peak,
            "computed_bytes": computed,
            "tensor_bytes": computed - process_bytes(config.optim.name, "cpu"),
        }
        if ranks.is_main:
            print(json.dumps(figures))


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
