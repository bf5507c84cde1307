"""`packtrain prepare`: text to a prepared dataset."""

from pathlib import Path
from typing import Annotated

import typer

from packtrain.cli.options import AsJson, RecipeName, Settings


def prepare(
    recipe: RecipeName,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the dataset.")] = None,
    as_json: AsJson = False,
) -> None:
    """Clean, deduplicate, split and tokenize text; takes up where it was stopped."""
    from packtrain.cli import ledger, screen
    from packtrain.config.load import load_recipe
    from packtrain.data.prepare import prepare as prepare_dataset
    from packtrain.errors import ConfigError

    screen.route_logging()
    if out is None:
        raise ConfigError("`packtrain prepare` needs a folder for the dataset; write --out data/NAME")
    resolved = load_recipe(recipe, settings or ())
    with screen.progress("preparing", "documents") as on_progress:
        prepared = prepare_dataset(resolved.config, out, on_progress=on_progress)
    manifest = prepared.manifest
    if as_json:
        facts = {"folder": str(out), "hash": manifest.hash, "was_finished": prepared.was_finished}
        screen.print_json({**facts, "ledger": manifest.ledger, "length_histogram": manifest.length_histogram})
        return
    if prepared.was_finished:
        screen.console.print(f"{out} was finished before, from this recipe and source; nothing was done", markup=False)
    ledger.show(manifest)
    for reason, seen in manifest.ledger["samples"].items():
        screen.note(f"{reason}, for example: {'; '.join(seen)}")
    screen.console.print(f"\nnext: packtrain train demo data.dataset={out} --run runs/NAME", markup=False)
