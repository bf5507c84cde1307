"""Decides what a plan says about a run: its length and FLOPs, memory, the micro-batch that fits, hours and cost."""

import time
from collections.abc import Sequence
from typing import Any

import psutil

from packtrain.config.run import RunConfig
from packtrain.plan.activations import PrecisionName, blocks_to_recompute, choose_kernels, share_to_keep
from packtrain.plan.command import commands
from packtrain.plan.corpora import Corpus, corpus_for, optimal_tokens
from packtrain.plan.cost import ASSUMED_MFU, Offer, estimate_offer, hours_of, reference_offers
from packtrain.plan.devices import PEAK_FLOPS, find_accelerator
from packtrain.plan.fit import Machine, describe, fit_run
from packtrain.plan.length import Length, assume_vocabulary, find_length
from packtrain.plan.memory import (
    ALLOCATOR_SHARE,
    PROCESS_BYTES_ELSEWHERE,
    checkpoint_bytes,
    largest_micro_batch,
    memory,
    needed_bytes,
    peak_bytes,
)
from packtrain.plan.parameters import flops_per_token, num_parameters, parameters_by_part
from packtrain.plan.repetition import describe_text

# Assumed: the share of this CPU's measured rate that training reaches.
_ASSUMED_CPU_SHARE = 0.5
# GPU memories to fit a micro-batch into, beside this machine's own memory.
_GPU_MEMORIES = {"12 GB": 12 * 10**9, "24 GB": 24 * 10**9, "40 GB": 40 * 10**9, "80 GB": 80 * 10**9}
# Numbers of GPUs that share one copy of the model with parallel.mode=fsdp.
_SHARD_COUNTS = (1, 2, 4, 8)


def compute_plan(
    config: RunConfig,
    *,
    preset: str = "",
    settings: Sequence[str] = (),
    gpu: str | None = None,
    gpus: int | None = None,
    nodes: int = 1,
    mfu: float = ASSUMED_MFU,
    price_per_hour: float | None = None,
    rate: dict[str, Any] | None = None,
    network_gbit_s: float | None = None,
) -> dict[str, Any]:
    """Every figure of the plan. Those under `measured` were measured on this machine; the others are computed or assumed.

    `preset` and `settings` are as typed: the preset's recipe gives the length if no dataset is named, and both are in the
    commands. `gpu` names an accelerator that is asked about, with `gpus` of them in each of `nodes`, whose network has
    `network_gbit_s` (unset: the usual one). `rate` is what a probe
    measured here (`train.probe.measure`); without it, this machine's rate is an assumed share of its matrix products'.
    `memory` is that of a device that holds the whole model; `sharded` is that of each device if several share the model.
    Precision `auto` counts as bf16 on a GPU. On this machine's CPU, without `rate`, both `auto` and `fp8` count as fp32.
    Raises ConfigError for an unknown `gpu`, DatasetError for a dataset that cannot be read.
    """
    accelerator = None if gpu is None else find_accelerator(gpu)
    corpus = corpus_for(preset) if config.data.dataset is None else None
    config, vocabulary = assume_vocabulary(config, corpus)
    length = find_length(config, corpus)
    per_token = flops_per_token(config.model, config.data.seq_len)
    flops = None if length.tokens is None else per_token * length.tokens
    offer = None if accelerator is None else Offer(accelerator, gpus or 1, nodes, mfu, price_per_hour, network_gbit_s)
    tokens = length.tokens or optimal_tokens(num_parameters(config.model))
    here = _plan_here(config, tokens, rate, price_per_hour)
    target = here if offer is None else estimate_offer(config, offer, tokens)
    return {
        "preset": preset,
        "parameters": {"total": num_parameters(config.model), **parameters_by_part(config.model)},
        "vocabulary": {"size": config.model.vocab_size, "from": vocabulary or "model.vocab_size"},
        "tokens_per_step": config.train.global_batch_tokens,
        "steps": length.steps,
        "tokens": length.tokens,
        "length": _describe_length(config, length, corpus),
        "sources": length.sources,
        "text": describe_text(num_parameters(config.model), length.epoch_tokens, length.epochs, length.sources),
        "flops_per_token": per_token,
        "flops": flops,
        **_memory_of_gpus(config, rate),
        "checkpoint": {"bytes": checkpoint_bytes(config), "average": _average_of(config)},
        "devices": _estimate_devices(flops, mfu, gpus or 1, price_per_hour),
        "this_machine": here,
        "target": target,
        "references": [] if offer else reference_offers(config, length.tokens, gpus, mfu, price_per_hour),
        "commands": commands(config, preset, settings, target, corpus),
        "assumed": _assumptions(mfu, gpus, price_per_hour),
        "measured": {
            "memory_of_this_machine_bytes": here["memory_bytes"],
            "fp32_flops_of_this_cpu": here["fp32_flops"],
            "probe": rate,
        },
    }


def _average_of(config: RunConfig) -> dict[str, Any] | None:
    """Which average of the weights a run keeps, in memory and in each checkpoint, and its size."""
    kind = config.train.average
    return None if kind == "none" else {"kind": kind, "bytes": 4 * num_parameters(config.model)}


def _describe_length(config: RunConfig, length: Length, corpus: Corpus | None) -> dict[str, Any]:
    return {
        "basis": length.basis,
        "epochs": length.epochs,
        "epochs_set": config.train.epochs,
        "epoch_tokens": length.epoch_tokens,
        "is_approximate": length.is_approximate,
        "source": None if corpus is None else corpus.source,
        "compute_optimal_tokens": optimal_tokens(num_parameters(config.model)),
    }


def _assumptions(mfu: float, gpus: int | None, price_per_hour: float | None) -> dict[str, Any]:
    return {
        "mfu": mfu,
        "gpus": gpus or 1,
        "price_per_hour": price_per_hour,
        "overhead_bytes": PROCESS_BYTES_ELSEWHERE,
        "allocator_share": ALLOCATOR_SHARE,
        "share_of_this_cpu": _ASSUMED_CPU_SHARE,
    }


def _memory_of_gpus(config: RunConfig, rate: dict[str, Any] | None) -> dict[str, Any]:
    """Memory by part on one GPU or several that share the model, and the micro-batch that fits each usual size."""
    on_gpu, on_cpu = _choose_precisions(config)
    rows = config.rows_per_pass
    tokens, budget, drops = rows * config.data.seq_len, config.activation_budget_bytes, config.train.dropout > 0
    kernels = choose_kernels("cuda", config.train.compile)
    recomputed = blocks_to_recompute(config.model, tokens, on_gpu, budget, drops, kernels)
    if recomputed is None:
        # The budget cannot be kept and training will refuse to start: show the least memory it could need.
        recomputed = config.model.num_hidden_layers
    counts = [count for count in _SHARD_COUNTS if count <= config.rows_per_step]
    sharded = [_plan_shards(config, count, rows, recomputed, on_gpu) for count in counts]
    whole, here = sharded[0], _this_machine(rate, on_cpu)
    return {
        "memory": {
            "micro_batch_size": rows,
            "rows_per_step": config.rows_per_step,
            "seq_len": config.data.seq_len,
            "precision": on_gpu,
            "optimizer": config.optim.name,
            "parts_bytes": whole["parts_bytes"],
            "kernels": kernels,
            "blocks_computed_again": recomputed,
            "is_reduced_by_compiler": kernels == "compiled"
            and share_to_keep(config.model, tokens, on_gpu, budget, drops) < 1,
            "peak_bytes": whole["peak_bytes"],
        },
        "sharded": sharded,
        "micro_batch_that_fits": {
            **whole["micro_batch_that_fits"],
            "this machine": largest_micro_batch(config, here.memory_bytes, here.precision, here.device_type),
        },
    }


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
    drops = config.train.dropout > 0
    averages = config.train.average != "none"
    kernels, budget = choose_kernels("cuda", config.train.compile), config.activation_budget_bytes
    parts = memory(*shape, config.optim.name, precision, "cuda", recomputed, count, 1, drops, kernels, budget, averages)
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


def _this_machine(rate: dict[str, Any] | None, precision: PrecisionName) -> Machine:
    """This machine, as the probe found it; without one, its CPU."""
    if rate is not None:
        return Machine(rate["device"], rate["memory_bytes"], rate["precision"], rate["device_type"])
    return Machine("this machine's CPU", int(psutil.virtual_memory().total), precision, "cpu")


def _plan_here(
    config: RunConfig, tokens: int, rate: dict[str, Any] | None, price_per_hour: float | None
) -> dict[str, Any]:
    """Fit, memory and hours on this machine."""
    machine = _this_machine(rate, _choose_precisions(config)[1])
    fit = fit_run(config, machine)
    # Half a second on a slow CPU, for a figure that a probed rate replaces.
    fp32_flops = None if rate else _measure_cpu_rate()
    per_token = flops_per_token(config.model, config.data.seq_len)
    tokens_per_s = rate["tokens_per_s"] if rate else (fp32_flops or 0.0) * _ASSUMED_CPU_SHARE / per_token
    hours = hours_of(config, tokens, tokens_per_s)
    accumulates = fit.micro_batch_size < config.rows_per_step
    shape = (config, fit.micro_batch_size, machine.precision, machine.device_type)
    return {
        **describe(fit, machine),
        "needed_bytes": needed_bytes(*shape, accumulates=accumulates),
        "tokens": tokens,
        "tokens_per_s": tokens_per_s,
        "rate_is": "assumed" if rate is None else "measured",
        "processor_share": None if rate is None else _processor_share(rate),
        **hours,
        "price_per_hour": price_per_hour,
        "cost": None if price_per_hour is None or hours["hours"] is None else hours["hours"] * price_per_hour,
        "price_is": "given",
        "fp32_flops": fp32_flops,
    }


def _processor_share(rate: dict[str, Any]) -> float | None:
    """Share of its threads' time that the probe got from the CPU; well below 1 if other work ran beside it."""
    if rate.get("device_type") != "cpu" or not rate.get("tokens_per_processor_s") or not rate.get("threads"):
        return None
    return float(rate["tokens_per_s"] / rate["tokens_per_processor_s"] / rate["threads"])


def _estimate_devices(flops: float | None, mfu: float, gpus: int, price_per_hour: float | None) -> list[dict[str, Any]]:
    rows = []
    for device, peak_flops in PEAK_FLOPS.items():
        hours = None if flops is None else flops / (peak_flops * mfu * gpus) / 3600
        cost = None if hours is None or price_per_hour is None else hours * gpus * price_per_hour
        rows.append({"device": device, "peak_flops": peak_flops, "hours": hours, "cost": cost})
    return rows


def _measure_cpu_rate() -> float:
    """FLOPs per second of float32 matrix products on this CPU: the best of a few short ones."""
    # A plan with a probed rate, or of another machine, needs no numpy.
    import numpy as np

    a = np.ones((1024, 1024), dtype=np.float32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(seconds)
