"""Decides what a plan says about a run: its length and FLOPs, memory, the micro-batch that fits, hours and cost."""

import time
from typing import Any

import numpy as np
import psutil

from packtrain.config.run import RunConfig
from packtrain.plan.devices import PEAK_FLOPS
from packtrain.plan.memory import (
    ALLOCATOR_SHARE,
    PROCESS_BYTES_ELSEWHERE,
    PrecisionName,
    blocks_to_recompute,
    largest_micro_batch,
    memory,
    needed_bytes,
    peak_bytes,
)
from packtrain.plan.parameters import flops_per_token, num_parameters, parameters_by_part

# Assumed: the share of this CPU's measured rate that training reaches.
_ASSUMED_CPU_SHARE = 0.5
# GPU memories to fit a micro-batch into, beside this machine's own memory.
_GPU_MEMORIES = {"12 GB": 12 * 10**9, "24 GB": 24 * 10**9, "40 GB": 40 * 10**9, "80 GB": 80 * 10**9}
# Numbers of GPUs that share one copy of the model with parallel.mode=fsdp.
_SHARD_COUNTS = (1, 2, 4, 8)


def compute_plan(
    config: RunConfig, *, mfu: float = 0.4, gpus: int = 1, price_per_hour: float | None = None
) -> dict[str, Any]:
    """Every figure of the plan. Those under `measured` were measured on this machine; the others are computed or assumed.

    `memory` is that of a device that holds the whole model; `sharded` is that of each device if several share the model.
    Precision `auto` counts as bf16 on a GPU. On this machine's CPU both `auto` and `fp8` count as fp32.
    """
    model = config.model
    steps, sources = _find_length(config)
    tokens = None if steps is None else steps * config.train.global_batch_tokens
    per_token = flops_per_token(model, config.data.seq_len)
    flops = None if tokens is None else per_token * tokens
    on_gpu, on_cpu = _choose_precisions(config)
    rows = min(config.train.micro_batch_size, config.rows_per_step)
    recomputed = blocks_to_recompute(model, rows * config.data.seq_len, on_gpu, config.activation_budget_bytes)
    if recomputed is None:
        # The budget cannot be kept and training will refuse to start: show the least memory it could need.
        recomputed = model.num_hidden_layers
    counts = [count for count in _SHARD_COUNTS if count <= config.rows_per_step]
    sharded = [_plan_shards(config, count, rows, recomputed, on_gpu) for count in counts]
    whole = sharded[0]
    here, rate_here = int(psutil.virtual_memory().total), _measure_cpu_rate()
    return {
        "parameters": {"total": num_parameters(model), **parameters_by_part(model)},
        "tokens_per_step": config.train.global_batch_tokens,
        "steps": steps,
        "tokens": tokens,
        "sources": sources,
        "flops_per_token": per_token,
        "flops": flops,
        "memory": {
            "micro_batch_size": rows,
            "rows_per_step": config.rows_per_step,
            "seq_len": config.data.seq_len,
            "precision": on_gpu,
            "optimizer": config.optim.name,
            "parts_bytes": whole["parts_bytes"],
            "blocks_computed_again": recomputed,
            "peak_bytes": whole["peak_bytes"],
        },
        "sharded": sharded,
        "micro_batch_that_fits": {
            **whole["micro_batch_that_fits"],
            "this machine": largest_micro_batch(config, here, on_cpu, "cpu"),
        },
        "devices": _estimate_devices(flops, mfu, gpus, price_per_hour),
        "this_machine": _plan_cpu(config, rows, flops, on_cpu, rate_here),
        "assumed": {
            "mfu": mfu,
            "gpus": gpus,
            "price_per_hour": price_per_hour,
            "overhead_bytes": PROCESS_BYTES_ELSEWHERE,
            "allocator_share": ALLOCATOR_SHARE,
            "share_of_this_cpu": _ASSUMED_CPU_SHARE,
        },
        "measured": {"memory_of_this_machine_bytes": here, "fp32_flops_of_this_cpu": rate_here},
    }


def _find_length(config: RunConfig) -> tuple[int | None, list[dict[str, Any]]]:
    """Steps of the run, None if neither steps nor a dataset are given; and how often a mixture's sources are seen."""
    named = config.data.dataset
    if named is None or (config.given_steps is not None and isinstance(named, str)):
        return config.given_steps, []
    from packtrain.data.feed.datasets import open_run_datasets

    sources = open_run_datasets(config.data)
    # `concat` counts rows at once, and its count is within a thousandth of what `bestfit` makes.
    rows = sources.layout(config.data.seq_len, "concat")
    steps = config.num_steps(rows.num_rows, rows.num_places)
    if len(sources.parts) == 1:
        return steps, []
    seen = sources.outlook(rows, config.rows_per_step, steps)
    return steps, [
        {
            "name": source.name,
            "share": source.share,
            "epoch_tokens": source.rows * config.data.seq_len,
            "epochs": source.epochs,
            "last_step": source.last_step,
        }
        for source in seen
    ]


def _choose_precisions(config: RunConfig) -> tuple[PrecisionName, PrecisionName]:
    """Precision on a GPU, and on this machine's CPU."""
    wanted = config.train.precision
    if wanted == "auto":
        return "bf16", "fp32"
    return wanted, "fp32" if wanted == "fp8" else wanted


def _plan_shards(config: RunConfig, count: int, rows: int, recomputed: int, precision: PrecisionName) -> dict[str, Any]:
    """Memory of one GPU, and the micro-batch that fits, if `count` GPUs share one copy of the model."""
    rows_of_rank = config.rows_per_step // count
    used = min(rows, rows_of_rank)
    shape = (config.model, used, config.data.seq_len)
    parts = memory(*shape, config.optim.name, precision, "cuda", recomputed, num_shards=count)
    return {
        "gpus": count,
        "micro_batch_size": used,
        "rows_per_step": rows_of_rank,
        "parts_bytes": parts,
        "peak_bytes": peak_bytes(parts, accumulates=used < rows_of_rank),
        "micro_batch_that_fits": {
            name: largest_micro_batch(config, size, precision, "cuda", num_shards=count)
            for name, size in _GPU_MEMORIES.items()
        },
    }


def _plan_cpu(
    config: RunConfig, rows: int, flops: float | None, precision: PrecisionName, rate: float
) -> dict[str, Any]:
    accumulates = rows < config.rows_per_step
    return {
        "hours": None if flops is None else flops / (rate * _ASSUMED_CPU_SHARE) / 3600,
        "precision": precision,
        "needed_bytes": needed_bytes(config, rows, precision, "cpu", accumulates=accumulates),
    }


def _estimate_devices(flops: float | None, mfu: float, gpus: int, price_per_hour: float | None) -> list[dict[str, Any]]:
    rows = []
    for device, peak_flops in PEAK_FLOPS.items():
        hours = None if flops is None else flops / (peak_flops * mfu * gpus) / 3600
        cost = None if hours is None or price_per_hour is None else hours * gpus * price_per_hour
        rows.append({"device": device, "peak_flops": peak_flops, "hours": hours, "cost": cost})
    return rows


def _measure_cpu_rate() -> float:
    """FLOPs per second of float32 matrix products on this CPU: the best of a few short ones."""
    a = np.ones((1024, 1024), dtype=np.float32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(seconds)
