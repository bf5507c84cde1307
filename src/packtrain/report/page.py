"""Decides how the report of one run is put together: one HTML file that needs no other."""

from collections.abc import Sequence
from pathlib import Path

from packtrain.errors import RunError
from packtrain.report import curves, dataset, evaluations, history, sections, summary
from packtrain.report.charts import render
from packtrain.report.collect import RunRecord, collect
from packtrain.report.document import contents, document, write_page
from packtrain.report.markup import Markup, el
from packtrain.report.planned import planned
from packtrain.report.several import compare
from packtrain.report.standing import standing
from packtrain.runs.layout import RunLayout


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of one run, or of several compared, and gives its path: `out`, or report.html in the first folder.

    Reads only files. Raises RunError if a folder is not a run, or if `out` cannot be written; DiskFullError if the disk is
    full.
    """
    target = out or RunLayout(folders[0]).report
    write_page(target, build_page([collect(folder) for folder in folders]), RunError)
    return target


def build_page(records: Sequence[RunRecord], *, live: bool = False) -> str:
    """The report of one or more runs as an HTML document. A `live` one follows the runs, and needs the server of `watch`."""
    title = " · ".join(record.name for record in records)
    parts = _one(records[0]) if len(records) == 1 else compare(records)
    return document(f"{title} – packtrain report", parts, "the files of the run", live=live)


def _one(record: RunRecord) -> list[Markup]:
    learning = [render(figure) for figure in curves.learning([record])]
    machinery = [render(figure) for figure in curves.machinery([record])]
    nothing = el("p", "Nothing to draw yet.", class_="absent")
    origins = history.origins(record)
    parts = [
        sections.section("learning", "Learning", *(learning or [nothing]), standing(record)),
        evaluations.evaluation(record),
        sections.samples(record),
        sections.section("machinery", "Machinery", el("div", *machinery, class_="pair") if machinery else nothing),
        planned(record),
        *([origins] if origins else []),
        history.events(record),
        dataset.ledger(record),
        sections.configuration(record),
        sections.machine(record),
    ]
    header = el(
        "header",
        el("p", "Training report", class_="kicker"),
        el("h1", record.name),
        summary.standfirst(record),
        el("p", summary.byline(record), class_="byline"),
        summary.key_figures(record),
        contents({key: title for key, title in _CONTENTS.items() if key != "origins" or origins}),
        sections.missing([record]),
    )
    return [header, el("main", *parts)]


_CONTENTS = {
    "learning": "Learning",
    "evaluation": "Evaluation",
    "samples": "Samples",
    "machinery": "Machinery",
    "plan": "Plan and run",
    "origins": "Where the weights are from",
    "events": "Events",
    "data": "Data",
    "configuration": "Configuration",
    "machine": "Machine and versions",
}
