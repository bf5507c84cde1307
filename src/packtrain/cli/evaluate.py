"""`packtrain evaluate`: a model's loss on held-out text, beside what simpler methods reach, and its figures in standard tasks."""

from pathlib import Path
from typing import Annotated

import typer

from packtrain.api.measuring import EvaluateOptions, evaluate_and_save
from packtrain.cli import screen
from packtrain.cli.evaluation_view import show_tasks, show_text
from packtrain.cli.following import show_next, write_command
from packtrain.cli.options import AsJson, Best, Step, which_checkpoint
from packtrain.errors import ConfigError


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDER", help="A run, a checkpoint of one, or a model from elsewhere.")
    ],
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
        typer.Option("--dataset", metavar="FOLDER", help="Evaluate on another dataset, whatever its tokenizer."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="Evaluate on a file: one document, or a .jsonl file of many."),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator", metavar="STRING", help="Split the file of --text into documents; \\n is a line end."
        ),
    ] = None,
    text_column: Annotated[
        str, typer.Option("--text-column", metavar="NAME", help="The column of a .jsonl file that has the text.")
    ] = "text",
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="rows|documents",
            help="Score the rows of training, or each document by itself. Default: rows, where the model has any.",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", min=1, metavar="N", help="Tokens of a window of --protocol documents."),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option("--overlap", min=0, metavar="N", help="Tokens that a window repeats. Default: half of it."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar="NAME[,NAME...]", help="Tasks of lm-evaluation-harness, such as piqa."),
    ] = None,
    task_files: Annotated[
        Path | None,
        typer.Option("--task-files", metavar="FOLDER", help="A folder with tasks of your own: YAML beside its data."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N questions of each task.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure loss and bits per byte on held-out text, or figures in tasks."""
    screen.route_logging()
    if everything and tokens is not None:
        raise ConfigError(f"--all and --tokens {tokens} both say how much to evaluate; keep one")
    which = which_checkpoint(step, best)
    options = EvaluateOptions(
        tokens=tokens,
        everything=everything,
        dataset=dataset,
        text=text,
        separator=None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t"),
        text_column=text_column,
        protocol=protocol,  # type: ignore[arg-type]
        window=window,
        overlap=overlap,
        tasks=tuple(name.strip() for listed in tasks or () for name in listed.split(",") if name.strip()),
        task_files=task_files,
        limit=limit,
    )
    outcome = evaluate_and_save(model, options, which=which, step=step, progress=screen.progress)
    if as_json:
        screen.print_json(outcome)
        return
    if "model" in outcome:
        show_text(outcome)
    if "tasks" in outcome:
        show_tasks(outcome)
    if outcome["step"] is not None:
        show_next(write_command("report", model))
