"""`packtrain inspect`: a run, the exact rows of a step, and the steps that train on a document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packtrain.api.inspection import check_choice, choose_rows, describe_rows, describe_run_folder, find_trained
from packtrain.api.view import View, open_view
from packtrain.cli import ledger, screen
from packtrain.cli.following import show_next, write_command
from packtrain.cli.options import AsJson
from packtrain.data.tokens.visible import printable

if TYPE_CHECKING:
    from rich.text import Text

    from packtrain.data.inspect import RowView

# Easy to distinguish on dark and light screens.
_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
_SHOWN_ROWS = 4
_SHOWN_VISITS = 20
_SHOWN_DOCUMENTS = 10


def inspect(
    target: Annotated[
        Path,
        typer.Argument(metavar="DATASET|RUN", help="A folder that `packtrain prepare` or `packtrain train` wrote."),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For a dataset: values of the preset to set.")
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", help="Show the rows of step N; the first is 1.")
    ] = None,
    row: Annotated[int | None, typer.Option("--row", metavar="N", help="Show row N of the plan.")] = None,
    document: Annotated[
        str | None,
        typer.Option(
            "--document",
            metavar="NAME",
            help="Show when this document is trained on: an id, content hash, FILE, FILE:ROW or train/NUMBER.",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", metavar="PRESET", help="For a dataset: the preset that decides its rows.")
    ] = "demo",
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, metavar="N", help="Show N rows or documents at most; --json shows all by default."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a run, a step's rows, or when a document is trained on.

    Each token of a step is shown with its document, and the document with its place in the source.
    """
    from packtrain.runs.listing import looks_like_run

    screen.route_logging()
    check_choice(step, row, document)
    if not settings and step is None and row is None and document is None and looks_like_run(target):
        _inspect_run(target, as_json)
        return
    view = open_view(target, preset, settings or [])
    if document is not None:
        found = find_trained(view, document, limit if limit is not None or as_json else _SHOWN_DOCUMENTS)
        if as_json:
            screen.print_json(found)
        else:
            _print_when(view, found)
    elif step is not None or row is not None:
        if as_json:
            screen.print_json(describe_rows(view, step, row, limit))
        else:
            chosen = choose_rows(view, step, row)
            _print_rows(view, view.describe(chosen[: limit or _SHOWN_ROWS]), step, chosen)
    elif as_json:
        screen.print_json(view.summary())
    else:
        _print_summary(view)


def _inspect_run(target: Path, as_json: bool) -> None:
    from packtrain.cli.run_view import show_run

    described = describe_run_folder(target)
    if as_json:
        screen.print_json(described)
        return
    run, rows = described["run"], None
    if "plan" in described:
        shares = [_describe_share(source) for source in described.get("datasets", [])]
        rows = "\n".join(
            [*shares, _describe_plan(described["plan"], described["rows_per_step"], described["num_steps"])]
        )
        run["next"].append(["inspect", str(target), "--step", "1"])
    show_run(run, rows)


def _print_when(view: View, found: dict[str, Any]) -> None:
    if not found["documents"]:
        screen.console.print(
            f"No document of {screen.escape(view.sources.name)} is called {screen.escape(found['name'])}: `prepare` dropped it "
            "(the ledger in manifest.json counts the reasons), or the source does not have it.",
            soft_wrap=True,
        )
    for entry in found["documents"]:
        source = entry["source"]
        screen.console.print(
            f"[bold]{_of(entry.get('dataset'))}{entry['split']}/{entry['document']}[/bold]  {entry['tokens']} tokens  "
            f"{screen.escape(_source_label(source['file'], source['row'], source['id']))}",
            soft_wrap=True,
        )
        if entry["split"] == "validation":
            screen.console.print("  held out for validation: no step trains on it")
            continue
        for visit in entry["visits"][:_SHOWN_VISITS]:
            late = "" if visit["step"] <= view.num_steps else f"  (not reached in the run's {view.num_steps} steps)"
            late += _skipped(visit["skipped"])
            screen.console.print(
                f"  epoch {visit['epoch']}  step {visit['step']}  row {visit['row_of_step']} of the step "
                f"(row {visit['row']} of the plan)  tokens {visit['start']} to "
                f"{visit['start'] + visit['length'] - 1}{late}",
                soft_wrap=True,
            )
        if len(entry["visits"]) > _SHOWN_VISITS:
            screen.console.print(f"  and {len(entry['visits']) - _SHOWN_VISITS} more times; --json lists them all")
        for visit in entry["passed_over"][:_SHOWN_VISITS]:
            screen.console.print(
                f"  epoch {visit['epoch']}  not trained on: the run rolled back and passed over row {visit['row']} of the plan  "
                f"tokens {visit['start']} to {visit['start'] + visit['length'] - 1}",
                soft_wrap=True,
            )
        if not entry["visits"] and not entry["passed_over"]:
            screen.console.print(f"  not trained on: {_why_never(view)}")
    more = found["num_documents"] - len(found["documents"])
    if more:
        screen.console.print(f"{more:,} more documents have this name; --limit N shows N, --json lists them all")


def _why_never(view: View) -> str:
    if view.course.first_place:
        return "this run starts where another run is in the data (train.anneal_from or train.continue_from), and does not reach it"
    return "its dataset reaches its max_epochs (data.dataset) before"


def _skipped(reason: str | None) -> str:
    return "" if reason is None else f"  (skipped, {reason}: the weights stayed as they were)"


def _of(dataset: str | None) -> str:
    """The dataset of a mixture that a document belongs to, to put before its name."""
    return "" if dataset is None else f"{screen.escape(dataset)}: "


def _print_rows(view: View, rows: list[RowView], step: int | None, all_rows: list[int]) -> None:
    if step is not None:
        targets = view.num_targets(all_rows)
        skipped = _skipped(view.course.skipped.get(step))
        screen.console.print(
            f"step {step} of {view.num_steps}: {len(all_rows)} rows, {targets} targets{skipped}", soft_wrap=True
        )
    for number, row in enumerate(rows):
        place = "" if step is None else f", {number} of the step"
        screen.console.print(
            f"\n[bold]row {row.row}[/bold] of the plan{place}: {_of(row.dataset)}{row.num_targets} targets, {row.num_padded} padded"
        )
        for index, stretch in enumerate(row.stretches):
            screen.console.print(_stretch_text(stretch, _COLOURS[index % len(_COLOURS)]), soft_wrap=True)
    if len(rows) < len(all_rows):
        screen.console.print(f"\n{len(all_rows) - len(rows)} more rows; --limit {len(all_rows)} shows them all")


def _stretch_text(stretch: Any, colour: str) -> Text:
    from rich.text import Text

    last = stretch.start + stretch.length - 1
    text = Text(
        f"train/{stretch.document}  tokens {stretch.start} to {last} of {stretch.document_tokens}  "
        f"{_source_label(stretch.source.file, stretch.source.row, stretch.source.id)}\n",
        style=f"bold {colour} reverse",
    )
    return text.append(printable(stretch.text), style=f"not bold not reverse {colour}")


def _source_label(file: str, row: int, name: str | None) -> str:
    # On one line: a line break in a name would pass for the end of the label.
    return printable(f"{file}:{row}" + (f"  id {name}" if name else "")).replace("\n", "\\n")


def _print_summary(view: View) -> None:
    summary = view.summary()
    for source in view.sources.parts:
        if view.is_mixed:
            screen.heading(f"{source.name}: {source.dataset.folder}")
        ledger.show(source.dataset.manifest)
    if view.is_mixed:
        screen.heading("mixture")
        seen = view.sources.outlook(view.layout, view.config.rows_per_step, view.num_steps)
        screen.console.print("\n".join(screen.escape(str(source)) for source in seen), soft_wrap=True)
    rows = summary["plan"]
    if rows is None:
        screen.console.print("\nThis dataset is all validation: runs can be evaluated on it, but not trained.")
        screen.note("packtrain evaluate RUN --dataset FOLDER measures a run on it.")
        return
    screen.console.print(f"\n{_describe_plan(rows, view.config.rows_per_step, view.num_steps)}", soft_wrap=True)
    target = view.target
    show_next(write_command("inspect", target, "--step", 1), write_command("inspect", target, "--row", 0))


def _describe_share(source: dict[str, Any]) -> str:
    from packtrain.data.feed.datasets import Outlook

    seen = round(source["epochs"] * source["rows"])
    return str(Outlook(source["name"], source["share"], source["rows"], seen, source["last_step"]))


def _describe_plan(rows: dict[str, Any], rows_per_step: int, num_steps: int) -> str:
    return (
        f"Rows for training ({rows['packing']}, {rows['seq_len']} targets a row): {rows['rows']:,} rows, "
        f"{rows['targets']:,} targets, {rows['padded']:,} padded, {rows['dropped']:,} dropped, "
        f"{rows['cut_documents']:,} documents cut; {rows_per_step} rows a step, {num_steps:,} steps."
    )
