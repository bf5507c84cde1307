"""Peak memory of training steps on the CPU against what `packtrain plan` computes for them.

    python -m benchmarks.memory llama2-437m train.micro_batch_size=1 train.activation_gb=0.2 train.precision=fp32

Takes a preset and settings as `train` does. A process of its own builds model and optimizer as `train` does and takes steps of
one micro-batch of random tokens; its peak is the kernel's figure for the process (VmHWM, Linux).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a line, and return its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    words = json.dumps([options.preset, options.settings, options.steps, options.threads])
    child = subprocess.run(
        [sys.executable, "-c", f"from benchmarks.memory import steps; steps(*{words})"],
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(child.stdout.splitlines()[-1])
    print(
        f"{options.preset}, {figures['rows']} x {figures['seq_len']}, {figures['optimizer']}, {figures['precision']}, "
        f"{figures['blocks_computed_again']} blocks computed again: measured {figures['measured_bytes'] / 1e9:.2f} GB, "
        f"computed {figures['computed_bytes'] / 1e9:.2f} GB ({figures['computed_bytes'] / figures['measured_bytes'] - 1:+.1%})"
    )
    return figures


def steps(preset: str, settings: list[str], count: int, threads: int) -> None:
    """In the child: the steps, then one JSON line."""
    import torch

    from packtrain.config.load import load_run_config
    from packtrain.data.loader import Batch, LoaderState
    from packtrain.model.init import build
    from packtrain.model.roles import roles
    from packtrain.model.size import needed_bytes
    from packtrain.optim.build import build_optimizer
    from packtrain.parallel.ranks import Ranks
    from packtrain.train.device import check_precision, keep_freed_memory, resolve_precision
    from packtrain.train.memory import num_recomputed
    from packtrain.train.step import train_step

    config, cpu = load_run_config(preset, settings).config, torch.device("cpu")
    rows, seq_len = config.train.micro_batch_size, config.data.seq_len
    torch.set_num_threads(threads)
    keep_freed_memory(cpu, is_tight=config.train.activation_gb is not None)
    check_precision(config.train, cpu)
    name, precision = resolve_precision(config.train, cpu)
    model = build(config.model, seed=config.train.seed)
    again = num_recomputed(config, rows, name)
    model.recompute(again)
    optimizer = build_optimizer(config.optim, dict(model.named_parameters()), roles(model), precision.dtype)
    tokens = torch.randint(config.model.vocab_size, (rows, seq_len + 1), generator=torch.Generator().manual_seed(0))
    state = LoaderState("", "", 0, 0, 0)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], None, None, state=state, num_targets=rows * seq_len)
    for _ in range(count):
        train_step(
            model,
            optimizer,
            batch,
            micro_batch_size=rows,
            grad_clip=config.train.grad_clip,
            precision=precision,
            ranks=Ranks(),
            device=cpu,
        )
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    figures = {
        "rows": rows,
        "seq_len": seq_len,
        "optimizer": config.optim.name,
        "precision": name,
        "blocks_computed_again": again,
        "measured_bytes": int(line.split()[1]) * 1024,
        "computed_bytes": needed_bytes(config, rows, name, "cpu", accumulates=False),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
