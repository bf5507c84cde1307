"""Tokens per second and peak memory of a training step, against other tools, on the CPU in float32 or, by autocast, in bf16.

    python -m benchmarks.step --shape 15m --against transformers litgpt torchtitan --rounds 4 --json step.json

Each contender has its own process, so that peak memory is its own. They step in turns, so that a busy machine slows all of
them. At 110m and 437m, where together they would fill the memory or exceed it, whole processes take turns. A step is forward,
backward, optimizer and zero_grad. All get the same shape, batch, threads and seed; packtrain keeps freed memory as in
`packtrain train`. Processor seconds add up all threads: on a machine with other work, they say more than wall-clock
seconds. litgpt and torchtitan each get their own environment, made on first use.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders.autocast import DTYPES
from benchmarks.environments import REQUIREMENTS, default_folder, python_of
from packtrain.config.load import load_run_config
from packtrain.model.cpu.products import by_onednn, can_use_onednn, has_onednn
from packtrain.model.cpu.timing import list_products, time_products
from packtrain.plan.parameters import flops_per_token

# Preset, rows, tokens per row.
SHAPES = {
    "15m": ("llama2-15m", 8, 256),
    "42m": ("llama2-42m", 4, 512),
    "110m": ("llama2-110m", 2, 1024),
    "437m": ("llama2-437m", 1, 1024),
}
APART = {"110m", "437m"}
ADAMW = {"lr": 1e-4, "weight_decay": 0.1, "betas": (0.9, 0.95)}
SETTINGS = {**ADAMW, "grad_clip": 0.0, "device": "cpu"}
OURS = "packtrain"
PEERS = ("transformers", "transformers_compiled", "litgpt", "torchtitan")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return what `--json` writes."""
    options = _parser().parse_args(arguments)
    names = (*options.against, OURS)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    rates: dict[str, list[float]] = {}
    for number in range(options.rounds):
        measured = matmul_rates(options.threads, options.precision)
        measured |= rates_at_shapes(options.shape, options.threads, options.precision)
        for library, rate in measured.items():
            rates.setdefault(library, []).append(rate)
        # In turns, so that no contender always runs right after the same other one.
        order = names if number % 2 == 0 else names[::-1]
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
    parser.add_argument("--against", choices=PEERS, nargs="+", default=["transformers"])
    parser.add_argument("--optimizer", default="adamw", help="packtrain's; the others use adamw")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="precision of all contenders' matrix products"
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process, after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=default_folder(), help="where environments are kept")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def _race(names: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run one round, with one process per name, stepping in turns; returns its figures."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(options.threads)}
    figures: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        children = {}
        for name in names:
            python = python_of(name, options.environments) if name in REQUIREMENTS else sys.executable
            command = [python, "-m", "benchmarks.contenders", name, json.dumps(_shape(options))]
            child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            children[name] = stack.enter_context(child)
        lines = [{name: _ask(child) for name, child in children.items()} for _ in range(1 + options.steps)]
    for name in names:
        warm = [line[name] for line in lines[1:]]
        figures[name] = {key: [line[key] for line in warm] for key in ("seconds", "processor_seconds")}
        figures[name]["losses"] = [line[name]["loss"] for line in lines]
        figures[name]["peak_bytes"] = lines[-1][name]["peak_bytes"]
    return figures


def _shape(options: argparse.Namespace) -> dict[str, Any]:
    preset, rows, seq_len = SHAPES[options.shape]
    model = load_run_config(preset).config.model
    return {
        **model.model_dump(mode="json"),
        "num_key_value_heads": model.kv_heads,
        "vocab_size": model.vocab_rows,
        "max_position_embeddings": seq_len,
        **SETTINGS,
        "rows": rows,
        "seq_len": seq_len,
        "optimizer": options.optimizer,
        "precision": options.precision,
        "threads": options.threads,
    }


def _ask(child: "subprocess.Popen[str]") -> dict[str, Any]:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("step\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def matmul_rates(threads: int, precision: str) -> dict[str, float]:
    """This machine's matrix product, 2048 cubed, in GFLOP/s, by torch and by oneDNN, to compare a step with.
    In bf16, and without oneDNN, they are the same."""
    torch.set_num_threads(threads)
    a, b = (torch.randn(2048, 2048).to(DTYPES[precision]) for _ in "ab")
    onednn = by_onednn if precision == "fp32" and has_onednn() else torch.mm
    times: dict[str, list[float]] = {"torch": [], "onednn": []}
    for _ in range(6):
        for name, product in (("torch", torch.mm), ("onednn", onednn)):
            start = time.perf_counter()
            product(a, b)
            times[name].append(time.perf_counter() - start)
    # The first call creates the kernel.
    return {name: 2 * 2048**3 / statistics.median(seconds[1:]) / 1e9 for name, seconds in times.items()}


def rates_at_shapes(shape: str, threads: int, precision: str) -> dict[str, float]:
    """GFLOP/s of all products of a step together, by each library alone and by the faster one at each, with two lanes if the
    step has them. Nothing without oneDNN."""
    dtype = DTYPES[precision] or torch.float32
    if not can_use_onednn(torch.empty(0, dtype=dtype)):
        return {}
    preset, rows, seq_len = SHAPES[shape]
    config = load_run_config(preset).config
    lanes = config.num_lanes(rows) if threads > 1 else 1
    model, D = config.model, config.model.hidden_size
    q, kv, F = model.num_attention_heads * model.head_size, model.kv_heads * model.head_size, model.intermediate_size
    in_block = ((D, q), (D, kv), (D, kv), (q, D), (D, F), (D, F), (F, D))
    counts = Counter({pair: in_block.count(pair) * model.num_hidden_layers for pair in in_block})
    counts[D, model.vocab_rows] += 1
    products = list_products(model, rows // lanes * seq_len)
    rates = time_products(products, dtype, threads // lanes)
    work = [(product.flops * counts[product.inputs, product.outputs], rates[product.name]) for product in products]
    total = sum(flops for flops, _ in work)
    return {
        name: lanes * total / sum(flops / rate(found) for flops, found in work) / 1e9
        for name, rate in (
            ("torch at the shapes", lambda found: found.torch),
            ("onednn at the shapes", lambda found: found.onednn),
            ("faster at the shapes", max),
        )
    }


def _summary(
    results: dict[str, list[dict[str, Any]]], rates: dict[str, list[float]], options: argparse.Namespace
) -> dict[str, Any]:
    preset, rows, seq_len = SHAPES[options.shape]
    gflops = {library: statistics.median(measured) for library, measured in rates.items()}
    step_flops = rows * seq_len * flops_per_token(load_run_config(preset).config.model, seq_len)
    contenders = {}
    for name, rounds in results.items():
        step_s, processor_s = (
            statistics.median(s for figures in rounds for s in figures[key]) for key in ("seconds", "processor_seconds")
        )
        contenders[name] = {
            "step_s": step_s,
            "processor_s": processor_s,
            "tokens_per_s": rows * seq_len / step_s,
            "of_matmul_rate": {library: step_flops / step_s / 1e9 / rate for library, rate in gflops.items()},
            "peak_bytes": max(figures["peak_bytes"] for figures in rounds),
            "rounds": rounds,
        }
    ours = contenders[OURS]
    ratios = {
        name: {
            "speed": ours["tokens_per_s"] / theirs["tokens_per_s"],
            "processor": theirs["processor_s"] / ours["processor_s"],
            "memory": ours["peak_bytes"] / theirs["peak_bytes"],
        }
        for name, theirs in contenders.items()
        if name != OURS
    }
    return {
        "shape": options.shape,
        "rows": rows,
        "seq_len": seq_len,
        "optimizer": options.optimizer,
        "precision": options.precision,
        "threads": options.threads,
        "torch": torch.__version__,
        "matmul_gflops": gflops,
        "contenders": contenders,
        "ratios": ratios,
    }


def _print(report: dict[str, Any]) -> None:
    print(
        f"{report['shape']}, {report['rows']} x {report['seq_len']} tokens, {report['precision']}, {report['threads']} threads"
    )
    for name, figures in report["contenders"].items():
        optimizer = report["optimizer"] if name == OURS else "adamw"
        print(
            f"  {name:<22}{optimizer:<10}{figures['tokens_per_s']:9.1f} tokens/s  {figures['step_s']:8.3f} s a step "
            f"({figures['processor_s']:.3f} of processors), {figures['of_matmul_rate']['torch']:.0%} of the matrix rate "
            f"({figures['of_matmul_rate']['onednn']:.0%} of oneDNN's), {_at_shapes(figures['of_matmul_rate'])}"
            f"peak {figures['peak_bytes'] / 1e9:6.2f} GB"
        )
    for name, ratio in report["ratios"].items():
        print(
            f"  to {name}: speed {ratio['speed']:.3f} (by processor seconds {ratio['processor']:.3f}), "
            f"peak memory {ratio['memory']:.3f}"
        )
    gflops = report["matmul_gflops"]
    print(
        f"  matrix product of this machine in this run: {gflops['torch']:.0f} GFLOP/s, oneDNN's {gflops['onednn']:.0f}"
    )
    at_shapes = ", ".join(f"{name} {rate:.0f}" for name, rate in gflops.items() if name.endswith("shapes"))
    if at_shapes:
        print(f"  the step's products in this run, in GFLOP/s of {report['threads']} threads: {at_shapes}")


def _at_shapes(shares: dict[str, float]) -> str:
    share = shares.get("faster at the shapes")
    return "" if share is None else f"{share:.0%} of the faster library's at the step's shapes, "


if __name__ == "__main__":
    main()
