"""`packtrain prepare`: text to a prepared dataset."""

from pathlib import Path
from typing import Annotated, Any

import typer

from packtrain.cli.options import AsJson, RecipeName, Settings


def prepare(
    recipe: RecipeName,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the dataset.")] = None,
    as_json: AsJson = False,
) -> None:
    """Clean, deduplicate, split and tokenize text; takes up where it was stopped."""
    from packtrain.cli import screen
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
    _show(manifest)
    screen.console.print(f"\nnext: packtrain train demo data.dataset={out} --run runs/NAME", markup=False)


def _show(manifest: Any) -> None:
    from packtrain.cli import screen

    ledger = manifest.ledger
    documents, tokens, text = ledger["documents"], ledger["tokens"], ledger["utf8_bytes"]
    table = screen.table("", "documents", "tokens", "bytes of text", title="Ledger")
    table.add_row("in", f"{documents['in']:,}", f"{tokens['in']:,} kept", f"{text['in']:,} kept")
    for name in ("train", "validation"):
        table.add_row(name, f"{documents[name]:,}", f"{tokens[name]:,}", f"{text[name]:,}")
    table.add_row("duplicates", f"{documents['duplicates']:,}")
    for reason, count in documents["dropped"].items():
        table.add_row(reason, f"{count:,}")
    screen.console.print(table)
    lengths = screen.table("tokens", "documents", title="Documents by length")
    for least, count in manifest.length_histogram.items():
        low = int(least)
        lengths.add_row(f"{low:,} to {max(0, 2 * low - 1):,}", f"{count:,}")
    screen.console.print(lengths)
    leak = ledger["random_split"]
    screen.console.print(
        f"{ledger['bytes_per_token']:.2f} bytes a token; {ledger['duplicate_rate']:.2%} duplicates; a random "
        f"{leak['fraction']:.0%} split would have had {leak['leaked']:.2%} of its validation documents in training as well, "
        "this one has none"
    )
    for reason, seen in ledger["samples"].items():
        screen.note(f"{reason}, for example: {'; '.join(seen)}")
