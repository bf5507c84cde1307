"""`packtrain evaluate`: the loss of a run on held-out text, beside what simpler methods reach."""

from pathlib import Path
from typing import Annotated, Any

import typer

from packtrain.api.measuring import evaluate_and_save
from packtrain.cli import screen
from packtrain.cli.following import show_next, write_command
from packtrain.cli.options import AsJson, Best, Run, Step, which_checkpoint
from packtrain.errors import ConfigError


def evaluate(
    run: Run,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", min=1, metavar="N", help="Evaluate on N tokens at most. Default: the run's evaluate.tokens."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Evaluate on every held-out token.")] = False,
    best: Best = False,
    step: Step = None,
    dataset: Annotated[
        Path | None,
        typer.Option("--dataset", metavar="FOLDER", help="Evaluate on another dataset with the same tokenizer."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure loss and bits per byte on held-out text."""
    screen.route_logging()
    if everything and tokens is not None:
        raise ConfigError(f"--all and --tokens {tokens} both say how much to evaluate; keep one")
    which = which_checkpoint(step, best)
    outcome = evaluate_and_save(
        run, tokens=tokens, everything=everything, which=which, step=step, dataset=dataset, progress=screen.progress
    )
    if as_json:
        screen.print_json(outcome)
    else:
        _show(outcome)
        show_next(write_command("report", run))


def _show(outcome: dict[str, Any]) -> None:
    """Prints an evaluation: the model's figures, and a table of bits per byte with the yardsticks."""
    model = outcome["model"]
    screen.heading(f"Evaluation of step {outcome['step']:,}")
    screen.console.print(screen.escape(outcome["coverage"]))
    screen.console.print(
        f"loss {_figure(model['loss'])} nats per token, perplexity {_figure(model['perplexity'], 2)}, "
        f"{model['num_tokens']:,} tokens, {model['num_bytes']:,} bytes\n"
    )
    rows = [("this model", model["bits_per_byte"], model["sees"], "bold")]
    rows += [(y["name"], y["bits_per_byte"], y["sees"], "") for y in outcome["yardsticks"]]
    table = screen.table("on held-out text", "bits per byte", "context")
    table.columns[2].justify = "left"
    for name, bits, sees, style in sorted(rows, key=lambda row: (row[1] is None, row[1])):
        table.add_row(screen.escape(name), _figure(bits), screen.escape(sees), style=style)
    screen.console.print(table)
    if "sources" in outcome:
        table = screen.table("source", "share", "loss", "perplexity", "bits per byte")
        for source in outcome["sources"]:
            found = source["model"]
            figures = (_figure(found["loss"]), _figure(found["perplexity"], 2), _figure(found["bits_per_byte"]))
            table.add_row(screen.escape(source["name"]), f"{source['share']:.2%}", *figures)
        screen.heading("This model, by source")
        screen.console.print(table)


def _figure(value: float | None, places: int = 4) -> str:
    return "not finite" if value is None else f"{value:.{places}f}"
