"""`packtrain prepare`: text, made into a dataset."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packtrain.cli import ledger, screen
from packtrain.cli.following import quote
from packtrain.cli.options import AsJson, RecipeOrPath, RecipeSettings
from packtrain.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from packtrain.config.recipe import Recipe


def prepare(
    recipe: RecipeOrPath,
    settings: RecipeSettings = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="Folder or fsspec URL for the dataset.")
    ] = None,
    slice_range: Annotated[
        str | None,
        typer.Option(
            "--slice-range",
            metavar="RANGE",
            help="Prepare only slices FIRST:STOP, or PART/PARTS of all; other machines prepare the rest.",
        ),
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="Finish a dataset whose ranges are all prepared.")] = False,
    is_dry: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; estimate tokens, disk, time and copies from a sample.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Turn text into a dataset: clean, deduplicate, split, tokenize.

    Continues where it was stopped.
    """
    from packtrain.prepare.ranges import prepare_range
    from packtrain.prepare.run import Prepared
    from packtrain.prepare.run import prepare as prepare_dataset

    screen.route_logging()
    if out is None and not is_dry:
        raise ConfigError("`packtrain prepare` needs a folder for the dataset; write --out data/NAME")
    if finish and slice_range is not None:
        raise ConfigError("--slice-range prepares a part and --finish the rest; keep one")
    if is_dry and (finish or slice_range is not None):
        raise ConfigError("--dry-run estimates the whole source; leave --slice-range and --finish out")
    config = _resolve(recipe, settings or [])
    if is_dry:
        from packtrain.cli.dry_run import dry_run

        dry_run(config, [recipe, *(settings or ())], out, as_json)
        return
    assert out is not None
    with screen.progress("preparing", "documents") as on_progress:
        if slice_range is not None:
            done = prepare_range(config, out, slice_range, on_progress=on_progress)
        else:
            done = prepare_dataset(config, out, is_begun=finish, on_progress=on_progress)
    if isinstance(done, Prepared):
        _show(done, out, as_json)
    else:
        _show_range(done, as_json)


def _resolve(target: str, settings: list[str]) -> "Recipe":
    """The recipe that a name or path means; says what a path was taken for, and what a file seems to be instead."""
    from packtrain.config.load import load_recipe
    from packtrain.prepare.sources.looking import describe_one_document, describe_other_kind, resolve_target

    name, words, found = resolve_target(target, settings)
    recipe = load_recipe(name, words).config
    if found is not None:
        screen.note(f"{target} is {found.why}")
        screen.note(f"read as by: packtrain prepare {' '.join(map(quote, (name, *words)))}")
    elif (other := describe_other_kind(recipe)) is not None:
        if recipe.source.kind != "text":
            raise SourceError(other)
        screen.warn(f"{other}, to read it as such; it is read as plain text now")
    elif (offer := describe_one_document(recipe)) is not None:
        screen.warn(offer)
    return recipe


def _show_range(done: Any, as_json: bool) -> None:
    if as_json:
        screen.print_json(asdict(done))
        return
    what = f"slices {done.first} to {done.stop - 1} of {done.slices}" if done.first < done.stop else "no slices"
    screen.console.print(f"{what}: {done.scanned} scanned and {done.tokenized} tokenized now", markup=False)
    if done.unscanned:
        following = f"{done.unscanned} slices of other ranges are not scanned yet; then run the same command again to tokenize these"
    else:
        following = (
            "this range is complete; when all ranges are, run the command with --finish instead of --slice-range"
        )
    screen.console.print(following, markup=False)


def _show(prepared: Any, out: str, as_json: bool) -> None:
    from packtrain.storage.store import copy_command

    manifest = prepared.manifest
    if as_json:
        facts = {
            "folder": out,
            "hash": manifest.hash,
            "was_finished": prepared.was_finished,
            "encoded": prepared.encoded,
        }
        screen.print_json({**facts, "ledger": manifest.ledger, "length_histogram": manifest.length_histogram})
        return
    if prepared.was_finished:
        screen.console.print(f"{out} is already complete, from this recipe and source; nothing was done", markup=False)
    ledger.show(manifest)
    if prepared.encoded is not None:
        screen.console.print(ledger.describe_backend(prepared.encoded), soft_wrap=True, markup=False)
    for reason, seen in manifest.ledger["samples"].items():
        screen.note(f"{reason}, for example: {'; '.join(seen)}")
    if "://" in prepared.where:
        screen.console.print(f"\nto train on it, copy it to a disk: {copy_command(out)}", markup=False)
    else:
        ledger.show_use(manifest, out.removeprefix("file://"))
