"""`packtrain import`: token files of another program, made into a prepared dataset."""

from typing import Annotated, Literal

import typer

from packtrain.cli import ledger, screen
from packtrain.cli.options import AsJson, RecipeSettings

Format = Literal["nanogpt", "llmc", "megatron", "datatrove"]


def import_(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A token file, a folder or glob pattern of them, or a URL.")
    ],
    format: Annotated[
        Format,
        typer.Option("--format", metavar="nanogpt|llmc|megatron|datatrove", help="The program that wrote them."),
    ],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="NAME", help="Tokenizer of the ids: a hub name or a folder.")
    ],
    out: Annotated[str, typer.Option("--out", metavar="FOLDER", help="Folder or fsspec URL for the dataset.")],
    settings: RecipeSettings = None,
    eot: Annotated[
        str | None,
        typer.Option(
            "--eot",
            metavar="ID",
            help="The id between documents, or none, if the files have no index. Default: the tokenizer's EOS.",
        ),
    ] = None,
    split: Annotated[
        Literal["auto", "content", "files"],
        typer.Option(
            "--split",
            metavar="auto|content|files",
            help="Split by content, or by the names of the files; auto: by name if the names say it.",
        ),
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Make a dataset from another program's token files.

    Reads files of nanoGPT, llm.c, Megatron and datatrove. Ids and documents stay as they are.
    """
    from packtrain.api.importing import complete_recipe
    from packtrain.prepare.run import prepare

    screen.route_logging()
    recipe, found = complete_recipe(path, format, tokenizer, settings or [], eot, split)
    with screen.progress("importing", "documents") as on_progress:
        prepared = prepare(recipe, out, on_progress=on_progress)
    manifest = prepared.manifest
    facts = {"documents": found.documents, "tokens": found.tokens, "split": recipe.split.by}
    if as_json:
        written = {"folder": out, "hash": manifest.hash, "was_finished": prepared.was_finished, "found": facts}
        screen.print_json({**written, "ledger": manifest.ledger, "length_histogram": manifest.length_histogram})
        return
    if prepared.was_finished:
        screen.console.print(f"{out} is already complete, from these files; nothing was done", markup=False)
    ledger.show(manifest)
    always = {True: "every document", False: "not every document"}
    screen.console.print(
        f"imported {found.documents:,} documents, {found.tokens:,} ids, split by {recipe.split.by}; {always[found.begins]} begins "
        f"with BOS, {always[found.ends]} ends with EOS",
        markup=False,
        soft_wrap=True,
    )
    ledger.show_use(manifest, out)
