"""`packtrain verify`: is a prepared dataset still what it was?"""

from pathlib import Path
from typing import Annotated

import typer

from packtrain.cli.options import AsJson


def verify(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder that `packtrain prepare` wrote.")],
    rebuild: Annotated[
        int, typer.Option("--rebuild", min=0, help="Make this many random slices again from the source, and compare.")
    ] = 0,
    source: Annotated[str | None, typer.Option("--source", help="Where the source lies now, if it has moved.")] = None,
    as_json: AsJson = False,
) -> None:
    """Re-hash every shard of a dataset, and check its index, ids and document borders."""
    from dataclasses import asdict

    from packtrain.cli import screen
    from packtrain.errors import ConfigError
    from packtrain.prepare.verify import verify as verify_dataset

    screen.route_logging()
    if source is not None and not rebuild:
        raise ConfigError(f"--source {source} is only read with --rebuild; write --rebuild 1 as well, or leave it out")
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
        screen.console.print("every document is on the side that its content says, so none is on both")
    for slice_name in outcome.rebuilt:
        screen.console.print(f"made again from the source, byte for byte: {slice_name}", markup=False)
