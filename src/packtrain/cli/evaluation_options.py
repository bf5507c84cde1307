"""Decides the options of `packtrain evaluate`: on which text, by which protocol, and in which tasks."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path, typer.Argument(metavar="RUN|FOLDER", help="A run, a checkpoint of one, or a model from elsewhere.")
]
Tokens = Annotated[
    int | None,
    typer.Option(
        "--tokens", min=1, metavar="N", help="Evaluate on N tokens at most. Default: the run's evaluate.tokens."
    ),
]
Everything = Annotated[bool, typer.Option("--all", help="Evaluate on every held-out token.")]
DatasetFolder = Annotated[
    Path | None,
    typer.Option("--dataset", metavar="FOLDER", help="Evaluate on another dataset, whatever its tokenizer."),
]
TextFile = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="Evaluate on a file: one document, or a .jsonl file of many."),
]
Separator = Annotated[
    str | None,
    typer.Option("--separator", metavar="STRING", help="Split the file of --text into documents; \\n is a line end."),
]
TextColumn = Annotated[
    str, typer.Option("--text-column", metavar="NAME", help="The column of a .jsonl file that has the text.")
]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="rows|documents",
        help="Score the rows of training, or each document by itself. Default: rows, where the model has any.",
    ),
]
WindowTokens = Annotated[
    int | None, typer.Option("--window", min=1, metavar="N", help="Tokens of a window of --protocol documents.")
]
Overlap = Annotated[
    int | None,
    typer.Option("--overlap", min=0, metavar="N", help="Tokens that a window repeats. Default: half of it."),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--tasks", metavar="NAMES", help="Tasks of lm-evaluation-harness, such as piqa."),
]
TaskFiles = Annotated[
    Path | None,
    typer.Option("--task-files", metavar="FOLDER", help="A folder with tasks of your own: YAML beside its data."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N questions of each task.")
]
