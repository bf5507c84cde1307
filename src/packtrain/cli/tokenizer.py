"""`packtrain tokenizer`: a tokenizer trained on a recipe's documents, or written from a model."""

from pathlib import Path
from typing import Annotated

import typer

from packtrain.cli import screen
from packtrain.cli.completion import complete_recipes
from packtrain.cli.following import name_of, show_next, write_command
from packtrain.cli.options import AsJson, RecipeSettings
from packtrain.errors import ConfigError, TokenizerError


def tokenizer(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|MODEL",
            help="A recipe, or a TOML file; or a run, a Hugging Face folder, a GGUF or a llama2.c file.",
            autocompletion=complete_recipes,
        ),
    ],
    settings: RecipeSettings = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="Folder or fsspec URL for the tokenizer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer on a recipe's text, or write out a model's.

    A trained one is a byte-level BPE of tokenizer.vocab_size ids. Held-out documents are not used.
    """
    from packtrain.config.load import load_recipe
    from packtrain.prepare.run import prepare_tokenizer

    screen.route_logging()
    if out is None:
        raise ConfigError("`packtrain tokenizer` needs a folder for the tokenizer; write --out tokenizers/NAME")
    if Path(recipe).exists() and not recipe.endswith(".toml"):
        from packtrain.pretrained.open import is_model

        if is_model(Path(recipe)):
            _write_own(Path(recipe), Path(out), settings or [], as_json)
            return
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


def _write_own(model: Path, out: Path, settings: list[str], as_json: bool) -> None:
    """Writes a model's own tokenizer into a folder, for `tokenizer.name`."""
    from packtrain.pretrained.open import read_tokenizer

    if settings:
        raise ConfigError(f"{settings[0]} has no effect on the tokenizer of a model; leave it out")
    if (out / "tokenizer.json").exists():
        raise TokenizerError(f"{out} already has a tokenizer; give another --out folder")
    found = read_tokenizer(model)
    found.save(out)
    facts = {"folder": str(out), "vocab_size": found.vocab_size, "bos": found.bos_token, "eos": found.eos_token}
    if as_json:
        screen.print_json({**facts, "hash": found.hash})
        return
    screen.console.print(f"the tokenizer of {model}, {found.vocab_size:,} ids ({found.kind}), in {out}", markup=False)
    show_next(write_command("prepare", "PATH", f"tokenizer.name={out}", "--out", f"data/{name_of(str(out))}"))
