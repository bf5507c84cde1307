"""Decides how the report of one run, or of several compared, is put together: one HTML file that needs no other."""

import datetime
import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import packtrain
from packtrain.errors import PacktrainError, RunError
from packtrain.report import curves, dataset, sections, summary
from packtrain.report.charts import render
from packtrain.report.collect import RunRecord, collect, differing_settings
from packtrain.report.markup import Child, Markup, el, join
from packtrain.runs.layout import RunLayout
from packtrain.storage.atomic import disk_errors, write_atomically


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of one run, or of several compared, and gives its path: `out`, or report.html in the first folder.

    Reads only files. Raises RunError if a folder is not a run, or if `out` cannot be written; DiskFullError if the disk is
    full.
    """
    target = out or RunLayout(folders[0]).report
    write_page(target, build_page([collect(folder) for folder in folders]), RunError)
    return target


def write_page(target: Path, content: str, refusal: type[PacktrainError]) -> None:
    """Writes a page completely or not at all. Raises `refusal` if it cannot be written, DiskFullError if the disk is full."""
    try:
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such folder")
        with disk_errors(target.parent):
            write_atomically(target, content.encode())
    except OSError as error:
        raise refusal(
            f"the report cannot be written to {target} ({error.strerror}); choose another file with --out"
        ) from None


def build_page(records: Sequence[RunRecord]) -> str:
    """The report of one or more runs as an HTML document."""
    title = " · ".join(record.name for record in records)
    parts = _one(records[0]) if len(records) == 1 else _several(_named_apart(records))
    return document(f"{title} – packtrain report", parts, "the files of the run")


def document(title: str, parts: Sequence[Markup], origin: str) -> str:
    """An HTML document around the parts of a page; `origin`, in the footer, says what it was written from."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(_asset("page.css"))),
    )
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    footer = el("footer", f"Written by packtrain {packtrain.__version__} on {stamp} from {origin}.")
    return "<!DOCTYPE html>\n" + el(
        "html", head, el("body", *parts, footer, el("script", Markup(_asset("page.js")))), lang="en"
    )


def _one(record: RunRecord) -> list[Markup]:
    learning = [render(figure) for figure in curves.learning([record])]
    machinery = [render(figure) for figure in curves.machinery([record])]
    nothing = el("p", "Nothing to draw yet.", class_="absent")
    parts = [
        sections.section("learning", "Learning", *(learning or [nothing])),
        sections.evaluation(record),
        sections.samples(record),
        sections.section("machinery", "Machinery", el("div", *machinery, class_="pair") if machinery else nothing),
        sections.events(record),
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
        contents(_CONTENTS),
        _missing([record]),
    )
    return [header, el("main", *parts)]


def _several(records: Sequence[RunRecord]) -> list[Markup]:
    drawn = [render(figure) for figure in curves.learning(records)]
    machinery = [render(figure) for figure in curves.machinery(records)]
    nothing = el("p", "Nothing to draw yet.", class_="absent")
    parts = [
        sections.section("results", "Results", summary.results(records)),
        sections.section("learning", "Learning", *(drawn or [nothing])),
        sections.section("differences", "What differs", _differences(records)),
        sections.section("machinery", "Machinery", el("div", *machinery, class_="pair") if machinery else nothing),
    ]
    header = el(
        "header",
        el("p", "Comparison of training runs", class_="kicker"),
        el("h1", f"{len(records)} runs compared"),
        el("p", join(*(record.name for record in records), separator=" · "), class_="standfirst"),
        contents({**_CONTENTS_OF_SEVERAL, **{f"run{i}": r.name for i, r in enumerate(records)}}),
        _missing(records),
    )
    return [header, el("main", *parts, *(_folded(i, record) for i, record in enumerate(records)))]


def _folded(index: int, record: RunRecord) -> Markup:
    """All sections about one of several runs. They have no ids, which would repeat for each run."""
    plain = [
        Markup(part(record).replace(f'<section id="{key}">', "<section>", 1)) for key, part in _ABOUT_ONE_RUN.items()
    ]
    return el("details", el("summary", record.name), *plain, class_="run", id=f"run{index}")


def _differences(records: Sequence[RunRecord]) -> Markup:
    rows: list[list[Child]] = [
        [key, *(sections.setting_text(v) for v in values)] for key, values in differing_settings(list(records))
    ]
    for label, keys in _COMPARED_FACTS.items():
        facts = [_fact(record.manifest, keys) for record in records]
        if any(fact != facts[0] for fact in facts):
            rows.append([label, *facts])
    if not rows:
        return el("p", "No setting differs.", class_="absent")
    return sections.table(["Setting", *(record.name for record in records)], rows)


def _fact(manifest: dict[str, Any], keys: tuple[str, ...]) -> str:
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return "–" if value is None else str(value)


def _missing(records: Sequence[RunRecord]) -> Markup | None:
    sentences = [f"{r.name}: {s}" if len(records) > 1 else s for r in records for s in r.missing]
    if not sentences:
        return None
    return el(
        "div", el("p", "What is missing"), el("ul", *(el("li", s) for s in sentences)), class_="missing", role="note"
    )


def contents(entries: dict[str, str]) -> Markup:
    """Links to sections by their keys."""
    links = [el("li", el("a", title, href=f"#{key}")) for key, title in entries.items()]
    return el("nav", el("ul", *links), aria_label="Contents")


def _named_apart(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs, with those whose folders have the same name called by their paths."""
    names = [record.name for record in records]
    return [r if names.count(r.name) == 1 else replace(r, name=str(r.folder)) for r in records]


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


_CONTENTS = {
    "learning": "Learning",
    "evaluation": "Evaluation",
    "samples": "Samples",
    "machinery": "Machinery",
    "events": "Events",
    "data": "Data",
    "configuration": "Configuration",
    "machine": "Machine and versions",
}
_CONTENTS_OF_SEVERAL = {
    "results": "Results",
    "learning": "Learning",
    "differences": "What differs",
    "machinery": "Machinery",
}
_ABOUT_ONE_RUN = {
    "evaluation": sections.evaluation,
    "samples": sections.samples,
    "events": sections.events,
    "data": dataset.ledger,
    "configuration": sections.configuration,
    "machine": sections.machine,
}
_COMPARED_FACTS = {
    "dataset hash": ("dataset", "hash"),
    "tokenizer hash": ("dataset", "tokenizer", "hash"),
    "parameters": ("parameters",),
    "device": ("hardware", "device"),
    "processes": ("hardware", "world_size"),
    "git commit": ("git_commit",),
    "packtrain": ("versions", "packtrain"),
    "torch": ("versions", "torch"),
}
