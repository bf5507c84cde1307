"""Decides how a plan shows memory: by part, by the number of GPUs that share a copy of the model, and what fits."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packtrain.config.run import RunConfig
    from packtrain.plan.memory import PrecisionName

# Device memories to fit a micro-batch to; this machine's own is measured beside them.
MEMORIES = {"12 GB": 12 * 10**9, "24 GB": 24 * 10**9, "40 GB": 40 * 10**9, "80 GB": 80 * 10**9}
# GPUs that share a copy of the model with parallel.mode=fsdp.
_SHARDS = (1, 2, 4, 8)


def sharded(config: "RunConfig", rows: int, recomputed: int, precision: "PrecisionName") -> list[dict[str, Any]]:
    """What one GPU holds, and the micro-batch that fits, where so many share a copy of the model."""
    from packtrain.plan import memory as size

    model, seq_len, optimizer = config.model, config.data.seq_len, config.optim.name
    counts = [count for count in _SHARDS if count <= config.rows_per_step]
    found = []
    for count in counts:
        of_a_rank = config.rows_per_step // count
        used = min(rows, of_a_rank)
        parts = size.memory(model, used, seq_len, optimizer, precision, "cuda", recomputed, count)
        fitting = {
            name: size.largest_micro_batch(config, held, precision, "cuda", num_shards=count)
            for name, held in MEMORIES.items()
        }
        peak = size.peak_bytes(parts, accumulates=used < of_a_rank)
        found.append(
            {
                "gpus": count,
                "micro_batch_size": used,
                "rows_per_step": of_a_rank,
                "parts_bytes": parts,
                "peak_bytes": peak,
                "micro_batch_that_fits": fitting,
            }
        )
    return found


def show(outcome: dict[str, Any]) -> None:
    """Prints the memory of the run: by part, what fits, and with sharding."""
    from packtrain.cli import screen

    held, assumed = outcome["memory"], outcome["assumed"]
    table = screen.table("part", "memory")
    for name, count in (held["parts_bytes"] | {"peak": held["peak_bytes"]}).items():
        table.add_row(name, _bytes(count, held["peak_bytes"]))
    rows_and_tokens = f"{held['micro_batch_size']} x {held['seq_len']} tokens"
    screen.heading(f"memory of one GPU (computed), {rows_and_tokens}, {held['precision']}, {held['optimizer']}")
    screen.console.print(table)
    if held["blocks_computed_again"]:
        screen.console.print(
            f"{held['blocks_computed_again']} blocks are recomputed in the backward pass (train.activation_gb)",
            style="dim",
        )
    on_cpu = outcome["this_machine"]
    if on_cpu["needed_bytes"] is not None:
        screen.console.print(
            f"on this CPU in {on_cpu['precision']} the process takes {on_cpu['needed_bytes'] / 1e9:.2f} GB (computed)",
            soft_wrap=True,
        )
    table = screen.table("device", "rows")
    here = f"this machine, {outcome['measured']['memory_of_this_machine_bytes'] / 1e9:.0f} GB (measured), on the CPU"
    for name, rows in outcome["micro_batch_that_fits"].items():
        table.add_row(here if name == "this machine" else name, _rows(rows, held["rows_per_step"]))
    screen.heading("largest train.micro_batch_size that fits (computed)")
    screen.console.print(
        f"assumed in addition to the tensors: {assumed['overhead_bytes'] / 1e9:.0f} GB, and {assumed['allocator_share']:.0%} of their size",
        style="dim",
    )
    screen.console.print(table)
    if len(outcome["sharded"]) > 1:
        _show_sharded(outcome["sharded"], held["precision"])


def _show_sharded(ways: list[dict[str, Any]], precision: str) -> None:
    from packtrain.cli import screen

    highest = ways[0]["peak_bytes"]
    heads = ["1 GPU" if way["gpus"] == 1 else f"{way['gpus']} GPUs" for way in ways]
    table = screen.table("part", *heads)
    for name in ways[-1]["parts_bytes"]:
        counts = [way["parts_bytes"].get(name, 0) for way in ways]
        if any(counts):
            table.add_row(name, *(_bytes(count, highest) for count in counts))
    table.add_row("peak", *(_bytes(way["peak_bytes"], highest) for way in ways))
    screen.heading(f"memory of each GPU (computed) with parallel.mode=fsdp, {precision}")
    screen.console.print(table)
    table = screen.table("each GPU", *heads)
    for name in MEMORIES:
        table.add_row(name, *(_rows(way["micro_batch_that_fits"][name], way["rows_per_step"]) for way in ways))
    screen.heading("largest train.micro_batch_size that fits with sharding (computed)")
    screen.console.print(table)


def _bytes(count: int, highest: int) -> str:
    return f"{count / 1e9:.2f} GB" if highest >= 1e9 else f"{count / 1e6:.1f} MB"


def _rows(rows: int, rows_per_step: int) -> str:
    return f"{rows}, a whole step" if rows == rows_per_step else str(rows) if rows else "none"
