"""`packtrain plan`: what a run takes, before its first step."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from packtrain.cli import plan_memory
from packtrain.cli.options import AsJson, Preset, Settings

if TYPE_CHECKING:
    from packtrain.config.run import RunConfig
    from packtrain.plan.memory import PrecisionName

# Assumed: share of the CPU's measured rate that training reaches.
_ASSUMED_CPU_SHARE = 0.5


def plan(
    preset: Preset,
    settings: Settings = None,
    mfu: Annotated[
        float, typer.Option("--assumed-mfu", min=0.01, max=1.0, help="Share of a GPU's peak that training reaches.")
    ] = 0.4,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs that share the work.")] = 1,
    price_per_hour: Annotated[
        float | None, typer.Option("--price-per-hour", min=0.0, help="Price of one GPU for an hour.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show parameters, operations, memory, the micro-batch that fits, hours and cost of a run."""
    from packtrain.cli import screen
    from packtrain.config.load import load_run_config

    config = load_run_config(preset, settings or []).config
    outcome = compute(config, mfu=mfu, gpus=gpus, price_per_hour=price_per_hour)
    if as_json:
        screen.print_json(outcome)
    else:
        _show(outcome)


def compute(
    config: "RunConfig", *, mfu: float = 0.4, gpus: int = 1, price_per_hour: float | None = None
) -> dict[str, Any]:
    """Every figure of the plan; `measured` names those that were read from this machine, all others are computed.

    Memory is of one device that holds the whole model, and under `sharded` of one of so many that share it. Precision `auto`
    counts as bf16 on a GPU and fp32 on this machine's CPU, which `fp8` is not for
    either.
    """
    from packtrain.plan import memory as size
    from packtrain.plan import parameters

    model, seq_len = config.model, config.data.seq_len
    per_token = parameters.flops_per_token(model, seq_len)
    steps, sources = _length(config)
    tokens = None if steps is None else steps * config.train.global_batch_tokens
    total = None if tokens is None else per_token * tokens
    on_gpu, on_cpu = _precisions(config)
    rows = min(config.train.micro_batch_size, config.rows_per_step)
    accumulates = rows < config.rows_per_step
    recomputed = size.blocks_to_recompute(model, rows * seq_len, on_gpu, config.activation_budget_bytes)
    # Where the budget cannot be kept the run is refused: shown is what it would take at least.
    recomputed = model.num_hidden_layers if recomputed is None else recomputed
    parts = size.memory(model, rows, seq_len, config.optim.name, on_gpu, "cuda", recomputed)
    here, rate_here = _memory_here(), _rate_here()
    return {
        "parameters": {"total": parameters.num_parameters(model), **parameters.parameters_by_part(model)},
        "tokens_per_step": config.train.global_batch_tokens,
        "steps": steps,
        "tokens": tokens,
        "sources": sources,
        "flops_per_token": per_token,
        "flops": total,
        "memory": {
            "micro_batch_size": rows,
            "rows_per_step": config.rows_per_step,
            "seq_len": seq_len,
            "precision": on_gpu,
            "optimizer": config.optim.name,
            "parts_bytes": parts,
            "blocks_computed_again": recomputed,
            "peak_bytes": size.peak_bytes(parts, accumulates=accumulates),
        },
        "sharded": plan_memory.sharded(config, rows, recomputed, on_gpu),
        "micro_batch_that_fits": {
            **{
                name: size.largest_micro_batch(config, held, on_gpu, "cuda")
                for name, held in plan_memory.MEMORIES.items()
            },
            "this machine": size.largest_micro_batch(config, here, on_cpu, "cpu"),
        },
        "devices": _devices(total, mfu, gpus, price_per_hour),
        "this_machine": {
            "hours": None if total is None else total / (rate_here * _ASSUMED_CPU_SHARE) / 3600,
            "precision": on_cpu,
            "needed_bytes": size.needed_bytes(config, rows, on_cpu, "cpu", accumulates=accumulates),
        },
        "assumed": {
            "mfu": mfu,
            "gpus": gpus,
            "price_per_hour": price_per_hour,
            "overhead_bytes": size.PROCESS_BYTES_ELSEWHERE,
            "allocator_share": size.ALLOCATOR_SHARE,
            "share_of_this_cpu": _ASSUMED_CPU_SHARE,
        },
        "measured": {"memory_of_this_machine_bytes": here, "fp32_flops_of_this_cpu": rate_here},
    }


def _length(config: "RunConfig") -> tuple[int | None, list[dict[str, Any]]]:
    """Steps of the run, None where neither they nor a dataset are given, and what they see of each source of a mixture."""
    named = config.data.dataset
    if named is None or (config.given_steps is not None and isinstance(named, str)):
        return config.given_steps, []
    from packtrain.data.feed.datasets import open_run_datasets

    sources = open_run_datasets(config.data)
    # Rows as `concat` has them: at once, and within a thousandth of what `bestfit` comes to.
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


def _precisions(config: "RunConfig") -> tuple["PrecisionName", "PrecisionName"]:
    wanted = config.train.precision
    if wanted == "auto":
        return "bf16", "fp32"
    return wanted, "fp32" if wanted == "fp8" else wanted


def _memory_here() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _rate_here() -> float:
    """Float32 matrix products of this CPU in operations per second: the best of a few short ones."""
    import time

    import numpy as np

    a = np.ones((1024, 1024), dtype=np.float32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(seconds)


def _devices(flops: float | None, mfu: float, gpus: int, price_per_hour: float | None) -> list[dict[str, Any]]:
    from packtrain.plan.devices import DEVICES

    rows = []
    for device in DEVICES:
        hours = None if flops is None else flops / (device.peak_flops * mfu * gpus) / 3600
        cost = None if hours is None or price_per_hour is None else hours * gpus * price_per_hour
        rows.append({"device": device.name, "peak_flops": device.peak_flops, "hours": hours, "cost": cost})
    return rows


def _show(outcome: dict[str, Any]) -> None:
    from packtrain.cli import screen

    screen.heading("parameters (computed)")
    table = screen.table("part", "count")
    for name, count in outcome["parameters"].items():
        table.add_row(name, f"{count:,}")
    screen.console.print(table)
    screen.heading("work (computed)")
    table = screen.table("what", "count")
    for name in ("tokens_per_step", "steps", "tokens", "flops_per_token", "flops"):
        value = outcome[name]
        shown = "one epoch: give data.dataset" if value is None else f"{value:,.0f}" if value < 1e15 else f"{value:.3g}"
        table.add_row(name.replace("_", " "), shown)
    screen.console.print(table)
    if outcome["sources"]:
        _show_sources(outcome["sources"])
    plan_memory.show(outcome)
    if outcome["flops"] is not None:
        _show_time(outcome)


def _show_sources(sources: list[dict[str, Any]]) -> None:
    from rich.markup import escape

    from packtrain.cli import screen

    table = screen.table("source", "share", "tokens of an epoch", "times seen", "used up at")
    for source in sources:
        last = "" if source["last_step"] is None else f"step {source['last_step']:,}"
        cells = (f"{source['share']:.2%}", f"{source['epoch_tokens']:,}", f"{source['epochs']:.2f}", last)
        table.add_row(escape(source["name"]), *cells)
    screen.heading("mixture (computed)")
    screen.console.print(table)


def _show_time(outcome: dict[str, Any]) -> None:
    from packtrain.cli import screen

    assumed = outcome["assumed"]
    priced = assumed["price_per_hour"] is not None
    table = screen.table("device", "peak (vendor's)", "time", *(["cost"] if priced else []))
    for row in outcome["devices"]:
        cells = [row["device"], f"{row['peak_flops'] / 1e12:,.0f} TFLOP/s", _duration(row["hours"])]
        table.add_row(*cells, *([f"{row['cost']:,.2f}"] if priced else []))
    count = "1 GPU" if assumed["gpus"] == 1 else f"{assumed['gpus']} GPUs"
    screen.heading(f"time (computed) on {count} at an assumed {assumed['mfu']:.0%} of the peak in bf16")
    screen.console.print(table)
    rate, share = outcome["measured"]["fp32_flops_of_this_cpu"], assumed["share_of_this_cpu"]
    screen.console.print(
        f"this CPU: {_duration(outcome['this_machine']['hours'])} (computed) at an assumed {share:.0%} of its "
        f"{rate / 1e9:,.0f} GFLOP/s in float32 (measured)",
        soft_wrap=True,
    )
    if not priced:
        screen.console.print("cost: give --price-per-hour", style="dim")


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s" if hours > 1 / 3600 else "under 1 s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"
