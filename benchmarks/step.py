"""Training step against Hugging Face transformers: tokens per second and peak memory, float32 on the CPU.

    python -m benchmarks.step --shape 15m --rounds 4 --json step.json

Each contender has a process of its own, so that peak memory is its own; they step in turns, so that a busy machine slows
both. At 437m, where the two together would need 20 GB, whole processes take turns. A step is forward, backward, optimizer
and zero_grad. All get the same shape, batch, threads and seed; for packtrain memory is kept as `packtrain train` keeps it.
Processor seconds are those of all threads: on a machine with other work they say more than seconds on the clock.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from packtrain.config.load import load_run_config
from packtrain.config.model import ModelConfig
from packtrain.config.optim import OptimConfig

# Preset, rows, tokens a row.
SHAPES = {
    "15m": ("llama2-15m", 8, 256),
    "42m": ("llama2-42m", 4, 512),
    "110m": ("llama2-110m", 1, 1024),
    "437m": ("llama2-437m", 1, 1024),
}
APART = {"437m"}
LR, WEIGHT_DECAY, BETAS = 1e-4, 0.1, (0.9, 0.95)
CONTENDERS = ("transformers", "packtrain")
Step = Callable[[], float]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return what `--json` writes."""
    options = _parser().parse_args(arguments)
    if options.contender:
        serve(options.contender, options)
        return {}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    rates = []
    for number in range(options.rounds):
        rates.append(matmul_rate(options.threads))
        # Turn about, so that neither always runs on the machine the other warmed or filled.
        order = CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]
        for group in [[name] for name in order] if options.shape in APART else [order]:
            for name, figures in _race(group, options).items():
                results[name].append(figures)
                print(f"round {number + 1} {name}: {figures}", file=sys.stderr)
    report = _summary(results, rates, options)
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="15m")
    parser.add_argument("--optimizer", choices=("adamw", "adamw8bit"), default="adamw", help="ours; theirs is adamw")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser


def _race(names: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """One round: a process for each name, stepping in turns; its figures."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(options.threads)}
    figures: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        children = {}
        for name in names:
            command = [sys.executable, "-m", "benchmarks.step", "--contender", name, "--shape", options.shape]
            command += ["--optimizer", options.optimizer, "--threads", str(options.threads)]
            child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            children[name] = stack.enter_context(child)
        lines = [{name: _ask(child) for name, child in children.items()} for _ in range(1 + options.steps)]
    for name in names:
        warm = [line[name] for line in lines[1:]]
        figures[name] = {key: [line[key] for line in warm] for key in ("seconds", "processor_seconds")}
        figures[name]["losses"] = [line[name]["loss"] for line in lines]
        figures[name]["peak_bytes"] = lines[-1][name]["peak_bytes"]
    return figures


def _ask(child: "subprocess.Popen[str]") -> dict[str, Any]:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("step\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def serve(name: str, options: argparse.Namespace) -> None:
    """One contender: a step, and a line of figures, for each line of standard input."""
    torch.set_num_threads(options.threads)
    preset, rows, seq_len = SHAPES[options.shape]
    config = load_run_config(preset).config.model
    tokens = torch.randint(config.vocab_size, (rows, seq_len + 1), generator=torch.Generator().manual_seed(0))
    step = {"transformers": _transformers_step, "packtrain": _packtrain_step}[name](config, tokens, options.optimizer)
    for _ in sys.stdin:
        start, processor_start = time.perf_counter(), time.process_time()
        loss = step()
        figures = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - processor_start}
        print(json.dumps(figures | {"loss": loss, "peak_bytes": _peak_bytes()}), flush=True)


def _packtrain_step(config: ModelConfig, tokens: torch.Tensor, optimizer_name: str) -> Step:
    from packtrain.model.init import build
    from packtrain.model.roles import roles
    from packtrain.optim.build import build_optimizer
    from packtrain.train.device import keep_freed_memory

    keep_freed_memory(torch.device("cpu"))
    model = build(config, seed=0)
    settings = OptimConfig(name=optimizer_name, lr=LR, weight_decay=WEIGHT_DECAY, betas=BETAS)
    optimizer = build_optimizer(settings, dict(model.named_parameters()), roles(model))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        loss = model(inputs, targets) / targets.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _transformers_step(config: ModelConfig, tokens: torch.Tensor, _optimizer_name: str) -> Step:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=tokens.shape[1],
            attn_implementation="sdpa",
            use_cache=False,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, betas=BETAS, fused=True)
    # It shifts the labels itself: the same number of tokens goes through the model as in ours.
    inputs = tokens[:, :-1].contiguous()

    def step() -> float:
        loss = model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def matmul_rate(threads: int) -> float:
    """This machine's float32 matrix product, 2048 cubed, in GFLOP/s: the yardstick beside which a step stands."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times) / 1e9


def _summary(
    results: dict[str, list[dict[str, Any]]], rates: list[float], options: argparse.Namespace
) -> dict[str, Any]:
    _, rows, seq_len = SHAPES[options.shape]
    contenders = {}
    for name, rounds in results.items():
        step_s, processor_s = (
            statistics.median(s for figures in rounds for s in figures[key]) for key in ("seconds", "processor_seconds")
        )
        contenders[name] = {
            "step_s": step_s,
            "processor_s": processor_s,
            "tokens_per_s": rows * seq_len / step_s,
            "peak_bytes": max(figures["peak_bytes"] for figures in rounds),
            "rounds": rounds,
        }
    ours, theirs = contenders["packtrain"], contenders["transformers"]
    return {
        "shape": options.shape,
        "rows": rows,
        "seq_len": seq_len,
        "optimizer": options.optimizer,
        "threads": options.threads,
        "torch": torch.__version__,
        "matmul_gflops": statistics.median(rates),
        "contenders": contenders,
        "speed_ratio": ours["tokens_per_s"] / theirs["tokens_per_s"],
        "processor_ratio": theirs["processor_s"] / ours["processor_s"],
        "memory_ratio": ours["peak_bytes"] / theirs["peak_bytes"],
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{report['shape']}, {report['rows']} x {report['seq_len']} tokens, float32, {report['threads']} threads")
    for name, figures in report["contenders"].items():
        optimizer = report["optimizer"] if name == "packtrain" else "adamw"
        print(
            f"  {name:<13}{optimizer:<10}{figures['tokens_per_s']:9.1f} tokens/s  "
            f"{figures['step_s']:8.3f} s a step ({figures['processor_s']:.3f} of processors)  peak {figures['peak_bytes'] / 1e9:6.2f} GB"
        )
    print(
        f"  ratio: speed {report['speed_ratio']:.3f} (by processor seconds {report['processor_ratio']:.3f}), "
        f"peak memory {report['memory_ratio']:.3f}"
    )
    print(f"  matrix product of this machine in this run: {report['matmul_gflops']:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
