"""`packtrain verify`: whether a dataset is whole and unchanged."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from packtrain.cli import screen
from packtrain.cli.options import AsJson
from packtrain.errors import ConfigError


def verify(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder that `packtrain prepare` wrote.")],
    rebuild: Annotated[
        int,
        typer.Option(
            "--rebuild", min=0, metavar="N", help="Prepare N random slices again from the source, and compare."
        ),
    ] = 0,
    source: Annotated[
        str | None, typer.Option("--source", metavar="PATH", help="Where the source is now, if it was moved.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a dataset is whole and unchanged.

    Hashes every shard, and checks its index, its ids and its document boundaries.
    """
    from packtrain.prepare.verify import verify as verify_dataset

    screen.route_logging()
    if source is not None and not rebuild:
        raise ConfigError(f"--source {source} is used only with --rebuild; add --rebuild 1, or leave it out")
    with screen.progress("verifying", "bytes") as on_progress:
        outcome = verify_dataset(dataset, rebuild=rebuild, source_path=source, on_progress=on_progress)
    if as_json:
        screen.print_json(asdict(outcome))
        return
    screen.console.print(
        f"{dataset} is whole: {outcome.shards} shards, {outcome.documents:,} documents, {outcome.tokens:,} tokens, "
        f"{outcome.bytes_read:,} bytes read",
        markup=False,
        soft_wrap=True,
    )
    if outcome.split_by == "content":
        screen.console.print("every document is on the side that its content decides, so none is on both")
    elif not outcome.leaked_documents:
        screen.console.print("no training document equals a validation document")
    else:
        screen.warn(f"{outcome.leaked_documents:,} validation documents are in training too, as its ledger says")
    for slice_name in outcome.rebuilt:
        screen.console.print(f"made again from the source, byte for byte: {slice_name}", markup=False)
