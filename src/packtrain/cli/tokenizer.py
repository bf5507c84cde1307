"""`packtrain tokenizer`: train a tokenizer on a recipe's documents."""

from typing import Annotated

import typer

from packtrain.cli import screen
from packtrain.cli.following import name_of, show_next, write_command
from packtrain.cli.options import AsJson, RecipeName, RecipeSettings
from packtrain.errors import ConfigError


def tokenizer(
    recipe: RecipeName,
    settings: RecipeSettings = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="Folder or fsspec URL for the tokenizer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer on the documents of a recipe.

    It is a byte-level BPE of tokenizer.vocab_size ids. Held-out documents are not used.
    """
    from packtrain.config.load import load_recipe
    from packtrain.prepare.run import prepare_tokenizer

    screen.route_logging()
    if out is None:
        raise ConfigError("`packtrain tokenizer` needs a folder for the tokenizer; write --out tokenizers/NAME")
    with screen.progress("reading", "documents") as on_progress:
        trained = prepare_tokenizer(load_recipe(recipe, settings or ()).config, out, on_progress=on_progress)
    facts = {"folder": out, "vocab_size": trained.vocab_size, "bos": trained.bos_token, "eos": trained.eos_token}
    if as_json:
        screen.print_json({**facts, "hash": trained.hash})
        return
    screen.console.print(f"a byte-level BPE of {trained.vocab_size:,} ids in {out}", markup=False)
    others = [word for word in settings or () if not word.startswith("tokenizer.")]
    own = (f"tokenizer.name={out}", "tokenizer.vocab_size=")
    show_next(write_command("prepare", recipe, *others, *own, "--out", f"data/{name_of(out)}"))
