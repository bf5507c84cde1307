"""`packtrain inspect`: the exact rows of a step, and when a document is trained on."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packtrain.cli.options import AsJson

if TYPE_CHECKING:
    from rich.text import Text

    from packtrain.config.run import RunConfig
    from packtrain.data.inspect import RowView, Visit
    from packtrain.data.pack import Plan
    from packtrain.data.shards import Dataset, SplitName

# Told apart at a glance on dark and light screens.
_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
_SHOWN_ROWS = 4
_SHOWN_VISITS = 20


def inspect(
    target: Annotated[Path, typer.Argument(metavar="DATASET|RUN", help="A prepared dataset, or a run.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="With a dataset: settings to change.")
    ] = None,
    step: Annotated[int | None, typer.Option("--step", help="Show the rows of this step (1 is the first).")] = None,
    row: Annotated[int | None, typer.Option("--row", help="Show this row of the plan.")] = None,
    document: Annotated[
        str | None,
        typer.Option("--document", help="When is it trained on? An id, content hash, FILE, FILE:ROW or train/NUMBER."),
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="With a dataset: how its rows would be laid out.")] = "demo",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Rows to show of a step; with --json all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a step trains on, with the source of every token, or when a document is trained on."""
    from packtrain.cli import screen
    from packtrain.errors import ConfigError

    if sum(choice is not None for choice in (step, row, document)) > 1:
        raise ConfigError("--step, --row and --document ask different questions; give one of them")
    view = _open(target, preset, settings or [])
    if document is not None:
        found = _when(view, document)
        if as_json:
            screen.print_json(found)
        else:
            _print_when(view, found)
    elif step is not None or row is not None:
        shown = view.rows_of_step(step) if step is not None else [view.checked_row(row or 0)]
        wanted = limit if limit is not None else len(shown) if as_json else _SHOWN_ROWS
        rows = view.describe(shown[:wanted])
        if as_json:
            facts = {"step": step, "num_rows": len(shown), "num_targets": view.num_targets(shown)}
            screen.print_json({**view.summary(), **facts, "rows": [_row_tree(r) for r in rows]})
        else:
            _print_rows(view, rows, step, shown)
    elif as_json:
        screen.print_json(view.summary())
    else:
        _print_summary(view)


@dataclass(frozen=True)
class _View:
    """A dataset laid out as a run sees it."""

    target: Path
    dataset: Dataset
    config: RunConfig
    layout: Plan
    is_run: bool

    @property
    def num_steps(self) -> int:
        """Length of the run in steps, as configured."""
        return self.config.num_steps(self.layout.num_rows)

    def summary(self) -> dict[str, Any]:
        splits = {}
        for name in ("train", "validation"):
            split = self.dataset.split(name)
            splits[name] = {
                "documents": split.num_documents,
                "tokens": split.num_tokens,
                "utf8_bytes": split.utf8_bytes,
                "shards": len(split.shards),
            }
        return {
            "dataset": str(self.dataset.folder),
            "dataset_hash": self.dataset.manifest.hash,
            "splits": splits,
            "ledger": self.dataset.manifest.ledger,
            "length_histogram": self.dataset.manifest.length_histogram,
            "plan": self.layout.summary(),
            "seed": self.config.train.seed,
            "rows_per_step": self.config.rows_per_step,
            "num_steps": self.num_steps,
        }

    def rows_of_step(self, step: int) -> list[int]:
        from packtrain.data.loader import step_rows
        from packtrain.errors import ConfigError

        if step < 1:
            raise ConfigError(f"--step {step} does not exist; steps are counted from 1, so write --step 1 or more")
        count = self.config.rows_per_step
        return step_rows(self.layout, self.config.train.seed, (step - 1) * count, count).tolist()

    def checked_row(self, row: int) -> int:
        from packtrain.errors import ConfigError

        if not 0 <= row < self.layout.num_rows:
            raise ConfigError(f"--row {row} does not exist; this plan has the rows 0 to {self.layout.num_rows - 1}")
        return row

    def num_targets(self, rows: list[int]) -> int:
        import numpy as np

        return int(self.layout.row_targets(np.array(rows, dtype=np.int64)).sum())

    def describe(self, rows: list[int]) -> list[RowView]:
        from packtrain.data.inspect import describe_rows
        from packtrain.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(self.dataset.tokenizer_folder)
        mask = self.config.data.document_mask
        return describe_rows(self.dataset.split("train"), self.layout, tokenizer, rows, document_mask=mask)


def _open(target: Path, preset: str, settings: list[str]) -> _View:
    from packtrain.config.load import from_toml, load_run_config
    from packtrain.config.run import RunConfig
    from packtrain.data.pack import plan
    from packtrain.data.shards import open_dataset
    from packtrain.errors import ConfigError, DatasetError
    from packtrain.runs.layout import RunLayout

    run = RunLayout(target)
    if not run.config.is_file():
        config = load_run_config(preset, settings).config
        dataset = open_dataset(target)
    elif settings:
        raise ConfigError(f"{target} is a run, whose settings are fixed; leave out '{settings[0]}'")
    else:
        config = from_toml(RunConfig, run.config.read_text(encoding="utf-8"), str(run.config))
        known = _recorded_dataset(run.manifest)
        dataset = open_dataset(_dataset_folder(target, config, known.get("folder")))
        if known.get("hash", dataset.manifest.hash) != dataset.manifest.hash:
            raise DatasetError(
                f"{dataset.folder} is not the dataset that {target} was trained on (its manifest changed); "
                "put that one back to inspect the run"
            )
    layout = plan(dataset.split("train"), config.data.seq_len, config.data.packing)
    return _View(target, dataset, config, layout, run.config.is_file())


def _recorded_dataset(manifest: Path) -> dict[str, str]:
    """Folder and hash of the dataset as the run wrote them down."""
    from packtrain.errors import RunError

    if not manifest.is_file():
        return {}
    try:
        return json.loads(manifest.read_text(encoding="utf-8")).get("dataset", {})
    except ValueError as error:
        raise RunError(
            f"{manifest} is damaged ({error}); put it back, or inspect the dataset's folder instead"
        ) from None


def _dataset_folder(target: Path, config: RunConfig, recorded: str | None) -> Path:
    """The folder of the run's configuration, or, from another working directory, the absolute one of its manifest."""
    from packtrain.errors import DatasetError

    named = [Path(folder) for folder in (config.data.dataset, recorded) if folder]
    if not named:
        raise DatasetError(f"{target} names no dataset (data.dataset in its config.toml); give a dataset's folder")
    return next((folder for folder in named if folder.is_dir()), named[-1])


def _when(view: _View, name: str) -> dict[str, Any]:
    """Where the documents called `name` are, and when each of the training side is trained on."""
    from packtrain.data.index import DocumentIndex
    from packtrain.data.inspect import document_sources, visits

    num_epochs = max(1, math.ceil(view.num_steps * view.config.rows_per_step / view.layout.num_rows))
    found = []
    for split_name, number in _named(view.dataset, name):
        split = view.dataset.split(split_name)
        start, end = DocumentIndex(split).span(number)
        seen: list[Visit] = []
        if split_name == "train":
            options = {"seed": view.config.train.seed, "rows_per_step": view.config.rows_per_step}
            seen = visits(view.layout, number, **options, num_epochs=num_epochs)
        found.append(
            {
                "document": number,
                "split": split_name,
                "source": document_sources(split, [number])[number]._asdict(),
                "tokens": end - start,
                "visits": [dataclasses.asdict(v) for v in seen if v.epoch == 0 or v.step <= view.num_steps],
            }
        )
    return {"name": name, "seed": view.config.train.seed, "num_steps": view.num_steps, "documents": found}


def _named(dataset: Dataset, name: str) -> list[tuple[SplitName, int]]:
    from packtrain.data.inspect import find_documents
    from packtrain.data.shards import SPLITS

    found = [(split, number) for split in SPLITS for number in find_documents(dataset.split(split), name)]
    side, _, number = name.rpartition("/")
    for split in SPLITS:
        if side == split and number.isdecimal() and int(number) < dataset.split(split).num_documents:
            found.append((split, int(number)))
    return found


def _print_when(view: _View, found: dict[str, Any]) -> None:
    from rich.markup import escape

    from packtrain.cli.screen import console

    if not found["documents"]:
        console.print(
            f"No document of {escape(str(view.dataset.folder))} is called {escape(found['name'])}: it was dropped in "
            "preparation (the ledger in manifest.json counts why), or it never was in the source.",
            soft_wrap=True,
        )
    for entry in found["documents"]:
        source = entry["source"]
        console.print(
            f"[bold]{entry['split']}/{entry['document']}[/bold]  {entry['tokens']} tokens  "
            f"{escape(_source_label(source['file'], source['row'], source['id']))}",
            soft_wrap=True,
        )
        if entry["split"] == "validation":
            console.print("  held out for validation: no step trains on it")
            continue
        for visit in entry["visits"][:_SHOWN_VISITS]:
            late = "" if visit["step"] <= view.num_steps else f"  (not reached in the run's {view.num_steps} steps)"
            console.print(
                f"  epoch {visit['epoch']}  step {visit['step']}  row {visit['row_of_step']} of the step "
                f"(row {visit['row']} of the plan)  tokens {visit['start']} to "
                f"{visit['start'] + visit['length'] - 1}{late}",
                soft_wrap=True,
            )
        if len(entry["visits"]) > _SHOWN_VISITS:
            console.print(f"  and {len(entry['visits']) - _SHOWN_VISITS} times more; --json lists them all")


def _print_rows(view: _View, rows: list[RowView], step: int | None, all_rows: list[int]) -> None:
    from packtrain.cli.screen import console

    if step is not None:
        targets = view.num_targets(all_rows)
        console.print(f"step {step} of {view.num_steps}: {len(all_rows)} rows, {targets} targets")
    for number, row in enumerate(rows):
        place = "" if step is None else f", {number} of the step"
        console.print(
            f"\n[bold]row {row.row}[/bold] of the plan{place}: {row.num_targets} targets, {row.num_padded} padded"
        )
        for index, stretch in enumerate(row.stretches):
            console.print(_stretch_text(stretch, _COLOURS[index % len(_COLOURS)]), soft_wrap=True)
    if len(rows) < len(all_rows):
        console.print(f"\n{len(all_rows) - len(rows)} rows more; --limit {len(all_rows)} shows them all")


def _row_tree(row: RowView) -> dict[str, Any]:
    tree = dataclasses.asdict(row)
    for stretch in tree["stretches"]:
        stretch["source"] = stretch["source"]._asdict()
    return tree


def _stretch_text(stretch: Any, colour: str) -> Text:
    from rich.text import Text

    from packtrain.cli.screen import printable

    last = stretch.start + stretch.length - 1
    text = Text(
        f"train/{stretch.document}  tokens {stretch.start} to {last} of {stretch.document_tokens}  "
        f"{_source_label(stretch.source.file, stretch.source.row, stretch.source.id)}\n",
        style=f"bold {colour} reverse",
    )
    return text.append(printable(stretch.text), style=f"not bold not reverse {colour}")


def _source_label(file: str, row: int, name: str | None) -> str:
    from packtrain.cli.screen import printable

    return printable(f"{file}:{row}" + (f"  id {name}" if name else ""))


def _print_summary(view: _View) -> None:
    from rich.markup import escape

    from packtrain.cli import ledger, screen

    summary = view.summary()
    ledger.show(view.dataset.manifest)
    rows = summary["plan"]
    screen.console.print(
        f"\nLaid out for training ({rows['packing']}, {rows['seq_len']} targets a row): {rows['rows']:,} rows, "
        f"{rows['targets']:,} targets, {rows['padded']:,} padded, {rows['dropped']:,} dropped, "
        f"{rows['cut_documents']:,} documents cut; {view.config.rows_per_step} rows a step, {view.num_steps:,} steps.",
        soft_wrap=True,
    )
    name = escape(str(view.target))
    screen.note(f"Next: packtrain inspect {name} --step 1, or --document FILE, or --row 0")
