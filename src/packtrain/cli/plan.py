"""`packtrain plan`: the memory, time and cost of a run, before its first step, and after it how they compare."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.figures import amount, duration
from packtrain.cli.options import AsJson, Settings
from packtrain.errors import ConfigError


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


Target = Annotated[str | None, typer.Argument(metavar="PRESET", help="A preset, or a TOML file.")]
Gpu = Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="Plan for this GPU instead of this machine.")]
Gpus = Annotated[int | None, typer.Option("--gpus", min=1, metavar="N", help="GPUs in each node.")]
Nodes = Annotated[int, typer.Option("--nodes", min=1, metavar="N", help="Nodes that share the work.")]
Network = Annotated[
    float | None,
    typer.Option(
        "--network", min=0.1, metavar="GBIT", callback=_finite, help="Gbit/s of each node's network; unset: the usual."
    ),
]
Price = Annotated[
    float | None,
    typer.Option("--price-per-hour", min=0.0, metavar="X", callback=_finite, help="Price of one GPU for one hour."),
]
Mfu = Annotated[
    float,
    typer.Option(
        "--assumed-mfu",
        "--mfu",
        min=0.01,
        max=1.0,
        metavar="X",
        callback=_finite,
        help="Assumed share of a GPU's peak that training reaches.",
    ),
]
Probe = Annotated[
    bool | None,
    typer.Option(
        "--probe/--no-probe", help="Time a few steps here again, or never; otherwise once a day for each plan."
    ),
]
After = Annotated[
    Path | None, typer.Option("--after", metavar="RUN", help="Set what a run did beside what is planned for it.")
]
Full = Annotated[bool, typer.Option("--full", help="Show the tables of parameters, memory and time too.")]


def plan(
    preset: Target = None,
    settings: Settings = None,
    gpu: Gpu = None,
    gpus: Gpus = None,
    nodes: Nodes = 1,
    network: Network = None,
    price_per_hour: Price = None,
    mfu: Mfu = 0.4,
    probe: Probe = None,
    full: Full = False,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """Show the memory, time and cost of a run before it starts.

    In ten lines, with the command to type. --gpu asks about a machine that is not this one.
    """
    if after is not None:
        _compare(preset, after, probe, as_json)
        return
    if preset is None:
        raise ConfigError(
            "`packtrain plan` needs PRESET; write `packtrain plan PRESET`, or `packtrain plan --after RUN`"
        )
    from packtrain.api.training import with_shape
    from packtrain.cli.rate import find_rate
    from packtrain.config.load import load_run_config
    from packtrain.plan.corpora import corpus_for
    from packtrain.plan.length import assume_vocabulary
    from packtrain.plan.outlook import compute_plan

    config = with_shape(load_run_config(preset, settings or []))
    if gpu is None and nodes > 1:
        raise ConfigError(f"--nodes {nodes} asks about other machines than this one; name their GPU with --gpu")
    if network is not None and nodes == 1:
        raise ConfigError(f"--network {network:g} is a network between nodes; say how many there are with --nodes")
    complete = assume_vocabulary(config, corpus_for(preset))[0]
    outcome = compute_plan(
        config,
        preset=preset,
        settings=settings or (),
        gpu=gpu,
        gpus=gpus,
        nodes=nodes,
        network_gbit_s=network,
        mfu=mfu,
        price_per_hour=price_per_hour,
        rate=None if gpu is not None else find_rate(complete, probe),
    )
    if as_json:
        screen.print_json(outcome)
        return
    _show(outcome)
    if full:
        from packtrain.cli.plan_tables import show_tables

        show_tables(outcome)


def _compare(preset: str | None, run: Path, probe: bool | None, as_json: bool) -> None:
    from packtrain.cli.plan_after import compare_run, show_comparison

    if preset is not None:
        raise ConfigError(f"--after takes every setting from the run; leave out {preset}, or leave out --after {run}")
    outcome = compare_run(run, probe)
    (screen.print_json if as_json else show_comparison)(outcome)


def _show(outcome: dict[str, Any]) -> None:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _lines(outcome):
        grid.add_row(screen.escape(name), screen.escape(text))
    screen.console.print(grid)
    for number, command in enumerate(outcome["commands"]):
        # Not in the grid: a command that is pasted must not be wrapped.
        screen.console.print(f"{'' if number else 'next':<13} {command}", soft_wrap=True, markup=False)


def _lines(outcome: dict[str, Any]) -> Iterator[tuple[str, str]]:
    target, vocabulary = outcome["target"], outcome["vocabulary"]
    assumed = "" if vocabulary["from"] == "model.vocab_size" else f" ({vocabulary['from']})"
    seq_len = outcome["memory"]["seq_len"]
    yield (
        outcome["preset"] or "model",
        f"{amount(outcome['parameters']['total'])} parameters, vocabulary {vocabulary['size']:,}{assumed}, rows of {seq_len:,}",
    )
    yield "tokens", _length(outcome)
    yield from _epochs(outcome["length"])
    yield from _text(outcome["text"])
    yield "memory", _memory(outcome, target)
    yield from _average(outcome["checkpoint"])
    if target["problem"]:
        yield "problem" if target["fits"] else "does not fit", target["problem"]
    yield _time_label(target), _time(target)
    if target.get("scale"):
        yield "efficiency", _efficiency(target)
    if target["cost"] is not None:
        yield "money", _money(target)
    if (target["hours"] or math.inf) > _LONG_HOURS or not target["fits"]:
        for offer in outcome["references"]:
            yield _name(offer), _reference(offer)
    yield "", "computed, unless it says measured or assumed"


# A run that takes longer on this machine is one to rent another for.
_LONG_HOURS = 24
_BUSY_SHARE = 0.6
# Of efficiency, from which on another way to divide the model is named.
_WORTH_SAYING = 0.02
# More epochs than these give little (arXiv 2305.16264).
_USEFUL_EPOCHS = 4


def _length(outcome: dict[str, Any]) -> str:
    length = outcome["length"]
    if outcome["tokens"] is None:
        many = "one epoch" if not length["epochs_set"] else f"{length['epochs_set']:g} epochs"
        return f"{many}, unknown without data.dataset; below for {amount(length['compute_optimal_tokens'])}, 20 a parameter"
    steps = "1 step" if outcome["steps"] == 1 else f"{outcome['steps']:,} steps"
    return f"{amount(outcome['tokens'])} in {steps} of {outcome['tokens_per_step']:,}"


def _epochs(length: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if length["epochs"] is None:
        return
    about = "about " if length["is_approximate"] else ""
    epochs = f"{length['epochs']:.2g}" if length["epochs"] < 10 else f"{length['epochs']:,.0f}"
    basis = length["basis"].removeprefix("one epoch of ")
    yield "epochs", f"{about}{epochs}: {basis} has {about}{amount(length['epoch_tokens'])} tokens to train on"
    if length["epochs"] > _USEFUL_EPOCHS:
        yield "", f"more than {_USEFUL_EPOCHS} epochs memorise more than they teach: lower train.tokens, or add text"


def _text(text: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What text that is short for the model, or is read again, is worth."""
    if text is None or not text["is_scarce"]:
        return
    yield (
        "text",
        f"teaches as {amount(text['worth_tokens'])} new tokens; this model can use {amount(text['usable_tokens'])}, and "
        f"{_USEFUL_EPOCHS} epochs feed {amount(text['fed_parameters'])} parameters (arXiv 2305.16264)",
    )


def _memory(outcome: dict[str, Any], target: dict[str, Any]) -> str:
    rows, largest = target["micro_batch_size"], target["largest_micro_batch_size"]
    optimizer, has_one = outcome["memory"]["optimizer"], target["devices"] == 1
    needed = target.get("needed_bytes") or target["demand_bytes"]
    size = "?" if needed is None else _gigabytes(needed)
    mode = "" if has_one else f", {target['parallel_mode']}"
    most = f" (up to {largest} fit)" if largest > rows else ""
    each = "" if has_one else " each"
    return (
        f"{size} of {_gigabytes(target['memory_bytes'])} GB{each}: micro-batch {rows}{most}, {target['precision']}, "
        f"{optimizer}{mode}"
    )


def _average(checkpoint: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if checkpoint["average"] is not None:
        kind, size = checkpoint["average"]["kind"], checkpoint["average"]["bytes"] / 1e6
        whole = checkpoint["bytes"] / 1e6
        yield (
            "average",
            f"{size:,.1f} MB in memory and in each checkpoint, which takes {whole:,.1f} MB (train.average={kind})",
        )


def _name(offer: dict[str, Any]) -> str:
    return f"{offer['devices']} x {offer['device']}"


def _time_label(target: dict[str, Any]) -> str:
    return f"{_name(target)}" if "mfu" in target else "time here"


def _time(target: dict[str, Any]) -> str:
    if target["hours"] is None:
        return "unknown"
    if "mfu" in target:
        return f"{duration(target['hours'])} at an assumed {target['mfu']:.0%} of {_peak(target)}"
    rate = f"{target['tokens_per_s']:,.0f} tokens/s"
    share = target.get("processor_share")
    # Waiting for each other, threads lose a little on a quiet machine too.
    busy = f", with {share:.0%} of the processor: other work ran" if share is not None and share < _BUSY_SHARE else ""
    return f"{duration(target['hours'])} at {rate} in {target['precision']} ({target['rate_is']}{busy})"


def _efficiency(target: dict[str, Any]) -> str:
    scale = target["scale"]
    links = " and ".join(link["name"] for link in scale["links"])
    waits, step = (
        f"{ms:,.0f}" if ms >= 10 else f"{ms:.1f}" for ms in (scale["waiting_s"] * 1e3, scale["step_s"] * 1e3)
    )
    said = (
        f"{scale['efficiency']:.0%} of {target['devices']} times one's rate ({scale['efficiency_without_overlap']:.0%} without "
        f"overlap): waits {waits} of {step} ms, {links}"
    )
    best = max(target["ways"], key=lambda way: way["efficiency"])
    if best["efficiency"] < scale["efficiency"] + _WORTH_SAYING:
        return said
    setting = "parallel.mode=ddp" if best["num_shards"] == 1 else "parallel.mode=fsdp"
    size = f" parallel.shard_size={best['num_shards']}" if 1 < best["num_shards"] < target["devices"] else ""
    return f"{said}; {best['efficiency']:.0%} with {setting}{size}"


def _peak(offer: dict[str, Any]) -> str:
    return f"{offer['peak_flops'] / 1e12:,.0f} TFLOP/s in {offer['precision']}"


def _money(target: dict[str, Any]) -> str:
    price = f"${target['price_per_hour']:,.2f}"
    hours = target["hours"] * target["devices"]
    figures = f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
    return f"${target['cost']:,.2f}: {figures} device hours at {price} ({target['price_is']})"


def _reference(offer: dict[str, Any]) -> str:
    if offer["hours"] is None:
        return offer["problem"]
    price = "given" if offer["price_is"] == "given" else "assumed"
    length = f" for {amount(offer['tokens'])} tokens"
    if offer["length_is"] == "compute-optimal":
        length += ", 20 a parameter (arXiv 2203.15556)"
    fit = "" if offer["fits"] else "; does not fit as it is"
    return (
        f"{duration(offer['hours'])}, ${offer['cost']:,.0f}{length}, at {offer['mfu']:.0%} MFU (assumed) and "
        f"${offer['price_per_hour']:.2f} an hour ({price}){fit}"
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f}" if count < 1e10 else f"{count / 1e9:.1f}"
