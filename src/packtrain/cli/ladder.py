"""`packtrain ladder`: small runs that predict the loss of a large one before it is trained."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.options import AsJson, Preset, Settings
from packtrain.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from packtrain.runs.ladder import LadderRecord, RungRecord


def ladder(
    preset: Preset,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder of the ladder, with a run folder for each run."),
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", metavar="TIME", help="Time of this machine (30m, 2h), or FLOPs (1e15flops).")
    ] = "30m",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs, their tokens and hours; train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Predict a preset's loss from a few small runs on your data.

    Trains three or four small models of the preset's family, each on three lengths, and fits a law of loss by size and tokens.
    The same command continues a ladder that was stopped.
    """
    from packtrain.api.training import ladder as climb

    screen.route_logging()
    given = settings or []
    if dry_run:
        _print(climb(preset, *given, budget=budget), as_json=as_json)
        return
    if out is None:
        raise ConfigError("`packtrain ladder` needs a folder; write --out ladders/NAME, or --dry-run to train nothing")
    on_plan, on_end = (None, None) if as_json else (_show_plan, _show_end)
    try:
        with screen.progress("ladder", "steps") as on_step:
            done = climb(preset, *given, out=out, budget=budget, on_plan=on_plan, on_step=on_step, on_end=on_end)
    except Interrupted as stopped:
        stopped.command = shlex.join(["packtrain", *sys.argv[1:]])
        raise
    if as_json:
        _print(done, as_json=True)
        return
    _show_conclusion(done)
    screen.console.print(f"\nnext: packtrain report {out}", soft_wrap=True, markup=False)


def _print(record: "LadderRecord", *, as_json: bool) -> None:
    if as_json:
        screen.print_json(to_json(record))
    else:
        _show_plan(record)


def to_json(record: "LadderRecord") -> dict[str, Any]:
    """The ladder without the whole configuration of each run, which its folder has."""
    facts = record.model_dump(mode="json", exclude={"asked": True, "runs": {"__all__": {"config"}}})
    facts["budget"] = record.asked.budget
    facts["planned_s"] = sum(run.planned_s for run in record.runs)
    if record.held_out is not None:
        facts["held_out"]["error"] = record.held_out.error
    return facts


def _show_plan(record: "LadderRecord") -> None:
    from packtrain.ladder.budget import describe_seconds
    from packtrain.ladder.family import RATE_RULE, SHAPE_RULE
    from packtrain.ladder.rungs import LENGTH_RULE

    screen.heading(
        f"the ladder (computed; seconds by the rate of this machine, measured), --budget {record.asked.budget}"
    )
    table = screen.table("model", "parameters", "tokens", "epochs", "steps", "batch", "rate", "time")
    for run in record.runs:
        shape = f"{run.hidden_size} wide, {run.num_hidden_layers} layers"
        counts = (f"{n:,}" for n in (run.parameters, run.tokens))
        batch = (f"{run.steps:,}", f"{run.global_batch_tokens:,}", f"{run.lr:.2g}")
        table.add_row(shape, *counts, f"{run.epochs:.2f}", *batch, describe_seconds(run.planned_s))
    total_s = sum(run.planned_s for run in record.runs)
    table.add_row(
        "in all", "", f"{sum(run.tokens for run in record.runs):,}", "", "", "", "", describe_seconds(total_s)
    )
    table.add_row("to predict", f"{record.parameters:,}", f"{record.tokens:,}", f"{record.epochs:.2f}")
    screen.console.print(table)
    if record.slowdown > 1.25:
        busy = describe_seconds(total_s * record.slowdown)
        text = f"this machine is busy: other programs made it {record.slowdown:.1f} times slower just now, which gives {busy}"
        screen.console.print(text, soft_wrap=True)
    for rule in (f"Shapes keep {SHAPE_RULE}.", f"The {RATE_RULE}.", f"Lengths: {LENGTH_RULE}."):
        screen.console.print(rule, style="dim", soft_wrap=True)
    for sentence in record.notes:
        screen.warn(sentence)


def _show_end(run: "RungRecord") -> None:
    result = "diverged" if run.loss is None else f"loss {run.loss:.4f} nats per token"
    screen.console.print(f"{run.parameters:,} parameters, {run.tokens:,} tokens: {result}", soft_wrap=True)


def _show_conclusion(record: "LadderRecord") -> None:
    law, found, checked = record.law, record.prediction, record.held_out
    assert law is not None and found is not None
    lost = [run for run in record.runs if run.state == "diverged"]
    screen.heading("the law (fitted)")
    screen.console.print(
        f"loss = {law.floor:.3f} + {law.size_factor:.4g} / N^{law.exponent:.3f} + {law.tokens_factor:.4g} / D^{law.exponent:.3f}, "
        f"for N parameters and D tokens",
        soft_wrap=True,
    )
    low, high = record.law_intervals["exponent"]
    screen.console.print(
        "the form of Hoffmann et al. 2022 (arXiv 2203.15556) with one exponent, by the Huber loss of its logarithm; "
        f"95 % by bootstrap: exponent {low:.3f} to {high:.3f}, floor {record.law_intervals['floor'][0]:.3f} to "
        f"{record.law_intervals['floor'][1]:.3f}",
        style="dim",
        soft_wrap=True,
    )
    if lost:
        screen.warn(
            f"{len(lost)} of {len(record.runs)} runs diverged and are left out: {', '.join(run.name for run in lost)}"
        )
    screen.heading("check on the largest size")
    if checked is None:
        screen.console.print("not made: without the largest size, too few runs are left to fit", soft_wrap=True)
    else:
        screen.console.print(
            f"fitted without it, the law says {checked.predicted:.4f}; measured {checked.measured:.4f} "
            f"({abs(checked.error):.2%} too {'high' if checked.error > 0 else 'low'})",
            soft_wrap=True,
        )
    screen.heading("prediction")
    screen.console.print(
        f"{record.preset} after {found.tokens:,} tokens: loss {found.loss:.3f} nats per token ({found.low:.3f} to "
        f"{found.high:.3f}), {found.bits_per_byte:.3f} bits per byte ({found.bits_per_byte_low:.3f} to "
        f"{found.bits_per_byte_high:.3f})",
        soft_wrap=True,
    )
    screen.console.print(
        f"the interval is the bootstrap's 95 %, and at least the error of the check; the preset is "
        f"{record.flops / max(run.flops for run in record.runs):,.0f} times the FLOPs of the largest run",
        style="dim",
        soft_wrap=True,
    )
    for sentence in record.doubts:
        screen.warn(sentence)
