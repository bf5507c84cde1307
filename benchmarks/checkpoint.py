"""What a checkpoint costs the run: the step that saves against the steps before it, and the time until it is on the disk.

    python -m benchmarks.checkpoint --shape 437m --rounds 3 --folder runs --json checkpoint.json

A round is a few plain steps, then one that begins with a save. As in training, the checkpoint is copied or written during that step's
forward and backward passes, and the update waits for it. Float32 on the CPU, AdamW with 32- or 8-bit states.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.step import ADAMW, SHAPES
from packtrain.config.load import load_run_config
from packtrain.config.optim import OptimConfig
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.init import build
from packtrain.model.roles import roles
from packtrain.optim.build import build_optimizer
from packtrain.parallel.ranks import Ranks
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.retention import Retention
from packtrain.runs.writer import CheckpointWriter
from packtrain.train.device import keep_freed_memory
from packtrain.train.state import collect


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what `--json` writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="15m")
    parser.add_argument("--optimizer", choices=("adamw", "adamw8bit"), default="adamw")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="plain steps before each step that saves")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="write the checkpoints here; default: the folder for temporary files"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report = measure(options, RunLayout(Path(folder)))
    print(
        f"{report['shape']}, {report['optimizer']}, {report['bytes'] / 1e9:.2f} GB: a step takes {report['step_s']:.2f} s, one that "
        f"saves {report['saving_step_s']:.2f} s ({report['ratio']:.3f} times); on the disk after {report['written_s']:.2f} s, "
        f"verified in {report['verify_s']:.2f} s"
    )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def measure(options: argparse.Namespace, layout: RunLayout) -> dict[str, Any]:
    """Medians over the rounds, in seconds. Ratios compare the steps of one round."""
    keep_freed_memory(torch.device("cpu"))
    preset, rows, seq_len = SHAPES[options.shape]
    config = load_run_config(preset).config.model
    model = build(config, seed=0)
    use_cpu_kernels(model)
    settings = OptimConfig(name=options.optimizer, **ADAMW)
    optimizer = build_optimizer(settings, dict(model.named_parameters()), roles(model))
    tokens = torch.randint(config.vocab_size, (rows, seq_len + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    plain, saving, ratios, written = [], [], [], []
    with CheckpointWriter(layout, Ranks(), Retention(newest=1)) as writer:

        def step() -> None:
            (model(inputs, targets) / targets.numel()).backward()
            writer.wait_free()
            optimizer.step()
            optimizer.zero_grad()

        step()
        for number in range(options.rounds):
            of_round = []
            for _ in range(options.steps):
                start = time.perf_counter()
                step()
                of_round.append(time.perf_counter() - start)
            start = time.perf_counter()
            parts, numbers = collect(model, optimizer, Ranks())
            writer.save(parts, {"step": number + 1, "optimizer_numbers": numbers})
            step()
            saving.append(time.perf_counter() - start)
            writer.wait()
            written.append(time.perf_counter() - start)
            plain += of_round
            ratios.append(saving[-1] / statistics.median(of_round))
    num_bytes = sum(part.tensor.nbytes for part in parts.values())
    start = time.perf_counter()
    assert checkpoint.find_newest(layout) is not None
    return {
        "shape": options.shape,
        "optimizer": options.optimizer,
        "bytes": num_bytes,
        "step_s": statistics.median(plain),
        "saving_step_s": statistics.median(saving),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "written_s": statistics.median(written),
        "verify_s": time.perf_counter() - start,
    }


if __name__ == "__main__":
    main()
