"""`packtrain import`: token files of another program, made into a prepared dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from packtrain.cli import ledger, screen
from packtrain.cli.options import AsJson, RecipeSettings
from packtrain.errors import ConfigError

if TYPE_CHECKING:
    from packtrain.config.recipe import Recipe
    from packtrain.prepare.sources.imported import Survey

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
    from packtrain.prepare.run import prepare

    screen.route_logging()
    words = [f"source.kind={format}", f"source.path={path}", f"tokenizer.name={tokenizer}"]
    recipe, found = _complete_recipe(words, settings or [], eot, split)
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
        f"with BOS, {always[found.ends]} ends with EOS\n\nnext: packtrain train demo data.dataset={out} --run runs/NAME",
        markup=False,
        soft_wrap=True,
    )


def _complete_recipe(words: list[str], settings: list[str], eot: str | None, split: str) -> tuple[Recipe, Survey]:
    """The recipe with the settings that follow from what the files contain, and what that is."""
    from packtrain.config.load import load_recipe
    from packtrain.data.tokens.tokenizer import load_tokenizer
    from packtrain.prepare.sources.hub import tokenizer_folder
    from packtrain.prepare.sources.imported import survey

    # Settings of the split may fit only the way of splitting that is not known yet.
    recipe = load_recipe("import", [*words, *(word for word in settings if not word.startswith("split."))]).config
    opened = load_tokenizer(tokenizer_folder(recipe.tokenizer.name or "", recipe.tokenizer.revision))
    has_index = recipe.source.kind == "megatron"
    between = None if has_index else _boundary(eot, opened.eos_id)
    found = survey(recipe.source.model_copy(update={"eot": between}), opened.bos_id, opened.eos_id)
    names_files = any(word.startswith("split.validation_files=") for word in settings)
    by = split if split != "auto" else "files" if found.has_sides or names_files else "content"
    words += [
        f"split.by={by}",
        f"tokenizer.bos={str(found.begins).lower()}",
        f"tokenizer.eos={str(found.ends).lower()}",
    ]
    if between is not None:
        words += [f"source.eot={between}", f"source.eot_position={found.position}"]
    return load_recipe("import", [*words, *settings]).config, found


def _boundary(eot: str | None, eos_id: int | None) -> int | None:
    """The id between documents, from --eot or from the tokenizer."""
    if eot == "none":
        return None
    if eot is not None and not eot.isdecimal():
        raise ConfigError(f"--eot {eot} is not an id; write the number of the id between documents, or --eot none")
    if eot is None and eos_id is None:
        raise ConfigError("the tokenizer has no EOS token to separate documents by; write --eot ID, or --eot none")
    return int(eot) if eot is not None else eos_id
