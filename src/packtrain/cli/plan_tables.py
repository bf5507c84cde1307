"""Decides how the tables of a plan look, with which `packtrain plan --full` explains its ten lines."""

from typing import Any

from packtrain.cli import screen


def show_tables(outcome: dict[str, Any]) -> None:
    """Prints every table of a plan."""
    screen.heading("parameters (computed)")
    table = screen.table("part", "count")
    for name, count in outcome["parameters"].items():
        table.add_row(name, f"{count:,}")
    screen.console.print(table)
    screen.heading("work (computed)")
    table = screen.table("what", "count")
    for name in ("tokens_per_step", "steps", "tokens", "flops_per_token", "flops"):
        table.add_row(name.replace("_", " "), _amount(outcome[name]))
    screen.console.print(table)
    if outcome["sources"]:
        _show_sources(outcome["sources"])
    if outcome["text"]:
        _show_text(outcome["text"])
    _show_memory(outcome)
    if len(outcome["sharded"]) > 1:
        _show_sharded(outcome["sharded"], outcome["memory"]["precision"])
    if outcome["flops"] is not None:
        _show_time(outcome)
    if outcome["target"].get("scale"):
        _show_scale(outcome["target"])


def _show_sources(sources: list[dict[str, Any]]) -> None:
    table = screen.table("source", "share", "tokens in an epoch", "epochs", "used up at")
    for source in sources:
        last = "" if source["last_step"] is None else f"step {source['last_step']:,}"
        cells = (f"{source['share']:.2%}", f"{source['epoch_tokens']:,}", f"{source['epochs']:.2f}", last)
        table.add_row(screen.escape(source["name"]), *cells)
    screen.heading("mixture (computed)")
    screen.console.print(table)


def _show_text(text: dict[str, Any]) -> None:
    table = screen.table("epochs", "tokens read", "teach as new tokens", "feed parameters")
    for reading in text["readings"]:
        table.add_row(*(f"{reading[name]:,}" for name in ("epochs", "tokens", "worth_tokens", "fed_parameters")))
    screen.heading("this text, read again (computed)")
    screen.console.print(table)
    epochs, usable = (
        text["usable_epochs"],
        f"the {text['usable_tokens']:,} tokens that this model can use, 20 a parameter,",
    )
    enough = (
        "are more than any number of epochs teaches" if epochs is None else f"are as {epochs:.3g} epochs of this text"
    )
    screen.console.print(
        f"{usable} {enough}; by a fit to runs of up to 9B parameters on web text, without dropout (arXiv 2305.16264)",
        style="dim",
        soft_wrap=True,
    )


def _show_memory(outcome: dict[str, Any]) -> None:
    one, assumed, cpu = outcome["memory"], outcome["assumed"], outcome["this_machine"]
    table = screen.table("part", "memory")
    for name, count in (one["parts_bytes"] | {"peak": one["peak_bytes"]}).items():
        table.add_row(name, _bytes(count, one["peak_bytes"]))
    rows_and_tokens = f"{one['micro_batch_size']} x {one['seq_len']} tokens"
    screen.heading(f"memory of one GPU (computed), {rows_and_tokens}, {one['precision']}, {one['optimizer']}")
    screen.console.print(table)
    if one["is_reduced_by_compiler"]:
        screen.console.print(
            "the compiler keeps a part of each block's activations and computes the rest again (train.activation_gb)",
            style="dim",
            soft_wrap=True,
        )
    if one["blocks_computed_again"]:
        screen.console.print(
            f"{one['blocks_computed_again']} blocks are recomputed in the backward pass (train.activation_gb)",
            style="dim",
        )
    if cpu["needed_bytes"] is not None:
        screen.console.print(
            f"on this CPU in {cpu['precision']} the process needs {cpu['needed_bytes'] / 1e9:.2f} GB (computed)",
            soft_wrap=True,
        )
    table = screen.table("device", "rows")
    here = f"this machine, {outcome['measured']['memory_of_this_machine_bytes'] / 1e9:.0f} GB (measured), on the CPU"
    for name, rows in outcome["micro_batch_that_fits"].items():
        table.add_row(here if name == "this machine" else name, _rows(rows, one["rows_per_step"]))
    screen.heading("largest train.micro_batch_size that fits (computed)")
    screen.console.print(
        f"assumed in addition to the tensors: {assumed['overhead_bytes'] / 1e9:.0f} GB, and "
        f"{assumed['allocator_share']:.0%} of their size",
        style="dim",
    )
    screen.console.print(table)


def _show_sharded(ways: list[dict[str, Any]], precision: str) -> None:
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
    for name in ways[0]["micro_batch_that_fits"]:
        table.add_row(name, *(_rows(way["micro_batch_that_fits"][name], way["rows_per_step"]) for way in ways))
    screen.heading("largest train.micro_batch_size that fits with parallel.mode=fsdp (computed)")
    screen.console.print(table)


def _show_time(outcome: dict[str, Any]) -> None:
    assumed = outcome["assumed"]
    priced = assumed["price_per_hour"] is not None
    table = screen.table("device", "peak (vendor's)", "time", *(["cost"] if priced else []))
    for row in outcome["devices"]:
        cells = [row["device"], f"{row['peak_flops'] / 1e12:,.0f} TFLOP/s", _duration(row["hours"])]
        table.add_row(*cells, *([f"{row['cost']:,.2f}"] if priced else []))
    count = "1 GPU" if assumed["gpus"] == 1 else f"{assumed['gpus']} GPUs"
    alone = "" if assumed["gpus"] == 1 else ", without their communication"
    screen.heading(f"time (computed) on {count} at an assumed {assumed['mfu']:.0%} of the bf16 peak{alone}")
    screen.console.print(table)
    rate, share = outcome["measured"]["fp32_flops_of_this_cpu"], assumed["share_of_this_cpu"]
    here = outcome["this_machine"]
    by = f"at an assumed {share:.0%} of its {rate / 1e9:,.0f} GFLOP/s in float32 (measured)" if rate else "as probed"
    name = here["device"] if outcome["measured"]["probe"] else "this CPU"
    screen.console.print(f"{name}: {_duration(here['hours'])} (computed) {by}", soft_wrap=True)
    if not priced:
        screen.console.print("to see the cost, add --price-per-hour", style="dim")


def _show_scale(target: dict[str, Any]) -> None:
    scale = target["scale"]
    table = screen.table("exchange", "kind", "ranks", "times", "bytes", "time", "beside")
    for each in scale["collectives"]:
        size = _bytes(each["total_bytes"], each["total_bytes"])
        cells = (f"{each['ranks']}", f"{each['count']:,}", size, _milliseconds(each["seconds"]), each["during"])
        table.add_row(each["what"], each["kind"], *cells)
    screen.heading(
        f"what {target['devices']} x {target['device']} exchange in a step (computed), {scale['parallel_mode']}"
    )
    screen.console.print(table)
    table = screen.table("division", "shards", "passes", "update", "sends", "waits", "step", "keeps", "no overlap")
    for way in target["ways"]:
        times = (way[f"{part}_s"] for part in ("passes", "update", "communication", "waiting", "step"))
        shares = (f"{way[part]:.0%}" for part in ("efficiency", "efficiency_without_overlap"))
        table.add_row(way["parallel_mode"], f"{way['num_shards']}", *map(_milliseconds, times), *shares)
    screen.heading(f"time of a step (computed) in micro-batches of {target['micro_batch_size']}")
    screen.console.print(table)
    for link in scale["links"]:
        screen.console.print(
            f"{link['name']}: {link['rate'] / 1e9:.3g} GB/s reached of {link['vendor_rate'] / 1e9:.3g} (vendor's); {link['source']}",
            style="dim",
            soft_wrap=True,
        )
    screen.console.print(
        "assumed: what can overlap does, and slows nothing; each exchange takes 20 to 50 µs more, and 2 to 5 µs a hop",
        style="dim",
        soft_wrap=True,
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _amount(count: float | None) -> str:
    if count is None:
        return "one epoch; set data.dataset to see how long"
    return f"{count:,.0f}" if count < 1e15 else f"{count:.3g}"


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s" if hours > 1 / 3600 else "under 1 s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


def _bytes(count: int, highest: int) -> str:
    return f"{count / 1e9:.2f} GB" if highest >= 1e9 else f"{count / 1e6:.1f} MB"


def _rows(rows: int, rows_per_step: int) -> str:
    return f"{rows}, a whole step" if rows == rows_per_step else str(rows) if rows else "none"
