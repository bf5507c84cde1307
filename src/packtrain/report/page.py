"""Decides how the page of one run, or of several compared, is put together: one HTML file that needs nothing else."""

import datetime
import math
import statistics
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import packtrain
from packtrain.data.atomic import write_atomically
from packtrain.errors import RunError
from packtrain.report import curves, figures, sections
from packtrain.report.charts import render
from packtrain.report.collect import RunRecord, collect, differing_settings, number
from packtrain.report.markup import Child, Markup, el, join
from packtrain.runs.layout import RunLayout


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of one run, or of several compared, and gives its path: `out`, else report.html in the first folder.

    Reads only files. Raises RunError where a folder holds no run, or where `out` cannot be written.
    """
    target = out or RunLayout(folders[0]).report
    content = build_page([collect(folder) for folder in folders])
    try:
        write_atomically(target, content.encode())
    except OSError as error:
        raise RunError(
            f"the report cannot be written to {target} ({error.strerror}); give another file with --out"
        ) from None
    return target


def build_page(records: Sequence[RunRecord]) -> str:
    """The whole HTML document for at least one run."""
    title = " · ".join(record.name for record in records)
    parts = _one(records[0]) if len(records) == 1 else _several(_named_apart(records))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{title} – packtrain report"),
        el("style", Markup(_asset("page.css"))),
    )
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    footer = el("footer", f"Written by packtrain {packtrain.__version__} on {stamp} from the files of the run.")
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
        sections.ledger(record),
        sections.configuration(record),
        sections.machine(record),
    ]
    header = el(
        "header",
        el("p", "Training report", class_="kicker"),
        el("h1", record.name),
        _standfirst(record),
        el("p", _byline(record), class_="byline"),
        _key_figures(record),
        _contents(_CONTENTS),
        _missing([record]),
    )
    return [header, el("main", *parts)]


def _several(records: Sequence[RunRecord]) -> list[Markup]:
    drawn = [render(figure) for figure in curves.learning(records)]
    machinery = [render(figure) for figure in curves.machinery(records)]
    nothing = el("p", "Nothing to draw yet.", class_="absent")
    parts = [
        sections.section("results", "Results", _results(records)),
        sections.section("learning", "Learning", *(drawn or [nothing])),
        sections.section("differences", "What differs", _differences(records)),
        sections.section("machinery", "Machinery", el("div", *machinery, class_="pair") if machinery else nothing),
    ]
    header = el(
        "header",
        el("p", "Comparison of training runs", class_="kicker"),
        el("h1", f"{len(records)} runs compared"),
        el("p", join(*(record.name for record in records), separator=" · "), class_="standfirst"),
        _contents({**_CONTENTS_OF_SEVERAL, **{f"run{i}": r.name for i, r in enumerate(records)}}),
        _missing(records),
    )
    return [header, el("main", *parts, *(_folded(i, record) for i, record in enumerate(records)))]


def _folded(index: int, record: RunRecord) -> Markup:
    """All that concerns one of several runs. Headings within carry no anchors, which would be there once for each run."""
    inner = [
        part(record)
        for part in (
            sections.evaluation,
            sections.samples,
            sections.events,
            sections.ledger,
            sections.configuration,
            sections.machine,
        )
    ]
    plain = [
        Markup(part.replace(f'<section id="{key}">', "<section>", 1)) for part, key in zip(inner, _FOLDED, strict=True)
    ]
    return el("details", el("summary", record.name), *plain, class_="run", id=f"run{index}")


def _standfirst(record: RunRecord) -> Markup:
    bits, step = _bits(record)
    size = number(record.manifest.get("parameters"))
    parts: list[Child] = []
    if math.isfinite(size):
        parts += ["A Llama of ", el("b", f"{figures.short(size)} parameters"), " "]
    else:
        parts.append("A Llama ")
    if not record.last_step:
        return el("p", *parts, "that has not logged a step yet.", class_="standfirst")
    parts += ["that has read ", el("b", f"{figures.short(record.tokens_at(record.last_step))} tokens")]
    if bits is None:
        return el("p", *parts, ".", class_="standfirst")
    parts += [
        " and needs ",
        el("b", f"{bits:.3f} bits"),
        f" for a byte of text it has not seen (step {figures.exact(step)})",
    ]
    zlib = _yardstick(record, "zlib")
    model = record.evaluation.get("model")
    # Only the evaluation is on the same documents as the yardsticks.
    if zlib is not None and isinstance(model, dict) and number(model.get("bits_per_byte")) == bits:
        share = abs(1 - bits / zlib)
        parts.append(f", {share:.0%} {'less' if bits < zlib else 'more'} than {zlib:.3f} for zlib at its best")
    return el("p", *parts, ".", class_="standfirst")


def _bits(record: RunRecord) -> tuple[float | None, int]:
    """Bits per byte of the evaluation, else of the last validation in training, with its step."""
    model = record.evaluation.get("model")
    if isinstance(model, dict) and math.isfinite(number(model.get("bits_per_byte"))):
        step = number(record.evaluation.get("step"))
        return number(model.get("bits_per_byte")), int(step) if math.isfinite(step) else record.last_step
    for line in reversed(record.validation):
        if math.isfinite(number(line.get("val_bpb"))):
            return number(line["val_bpb"]), int(line["step"])
    return None, 0


def _yardstick(record: RunRecord, name: str) -> float | None:
    rows = record.evaluation.get("yardsticks")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and str(row.get("name", "")).startswith(name) and number(row.get("bits_per_byte")) > 0:
            return number(row["bits_per_byte"])
    return None


def _byline(record: RunRecord) -> str:
    planned, hardware = record.planned_steps, record.manifest.get("hardware")
    of = f" of {figures.exact(planned)}" if planned else ""
    words = [f"{figures.exact(record.last_step)}{of} steps logged"]
    last = record.events[-1] if record.events else {}
    if last.get("event"):
        words.append(f"last event: {str(last['event']).replace('_', ' ')}")
    if isinstance(hardware, dict) and hardware.get("device"):
        words.append(str(hardware["device"]))
    created = number(record.manifest.get("created"))
    if created > 0:
        words.append(f"begun {figures.moment(created)}")
    return " · ".join(words)


def _key_figures(record: RunRecord) -> Markup:
    cells: list[tuple[str, str, str]] = []
    size = number(record.manifest.get("parameters"))
    if math.isfinite(size):
        cells.append(("Parameters", figures.short(size), figures.exact(size)))
    if record.training:
        tokens = record.tokens_at(record.last_step)
        cells.append(("Tokens seen", figures.short(tokens), figures.exact(tokens)))
    best = _lowest(record, "val_loss")
    if best:
        cells.append(("Lowest held-out loss", f"{best[0]:.4f}", f"nats per token, step {figures.exact(best[1])}"))
    bits, step = _bits(record)
    if bits is not None:
        cells.append(("Bits per byte", f"{bits:.3f}", f"held out, step {figures.exact(step)}"))
    speeds = _finite(record.column("tokens_per_s"))
    if speeds:
        cells.append(("Tokens per second", figures.short(statistics.median(speeds)), "median of the logged lines"))
    seconds = _training_seconds(record)
    if seconds:
        cells.append(("Time in steps", figures.duration(seconds), "without validation and saving"))
    memory = _finite(record.column("memory_bytes"))
    if memory:
        cells.append(("Peak memory", figures.size(max(memory)), "of one process"))
    return (
        el("dl", *(el("div", el("dt", a), el("dd", b, el("small", c))) for a, b, c in cells), class_="key")
        if cells
        else Markup()
    )


def _results(records: Sequence[RunRecord]) -> Markup:
    rows = []
    for record in records:
        best, (bits, _) = _lowest(record, "val_loss"), _bits(record)
        speeds, size = _finite(record.column("tokens_per_s")), number(record.manifest.get("parameters"))
        seconds = _training_seconds(record)
        rows.append(
            (
                record.name,
                figures.short(size) if math.isfinite(size) else "–",
                figures.exact(record.last_step),
                figures.short(record.tokens_at(record.last_step)),
                f"{best[0]:.4f}" if best else "–",
                figures.decimal(bits),
                figures.short(statistics.median(speeds)) if speeds else "–",
                figures.duration(seconds) if seconds else "–",
            )
        )
    head = (
        "Run",
        "Parameters",
        "Steps",
        "Tokens",
        "Lowest held-out loss",
        "Bits per byte",
        "Tokens/s, median",
        "Time in steps",
    )
    return sections.table(head, rows, numbers=range(1, 8))


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
        "div",
        el("p", "What is not there (yet)"),
        el("ul", *(el("li", s) for s in sentences)),
        class_="missing",
        role="note",
    )


def _contents(entries: dict[str, str]) -> Markup:
    links = [el("li", el("a", title, href=f"#{key}")) for key, title in entries.items()]
    return el("nav", el("ul", *links), aria_label="Contents")


def _named_apart(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs whose folders have the same name are told apart by the path to them."""
    names = [record.name for record in records]
    return [r if names.count(r.name) == 1 else _renamed(r, str(r.folder)) for r in records]


def _renamed(record: RunRecord, name: str) -> RunRecord:
    return RunRecord(**{**vars(record), "name": name})


def _lowest(record: RunRecord, key: str) -> tuple[float, int] | None:
    found = [(number(line.get(key)), int(line["step"])) for line in record.validation]
    return min((pair for pair in found if math.isfinite(pair[0])), default=None)


def _training_seconds(record: RunRecord) -> float:
    """Seconds spent in steps: a line's mean per step, times the steps since the line before."""
    steps = [0, *(int(line["step"]) for line in record.training)]
    gaps = [after - before for before, after in zip(steps, steps[1:], strict=False)]
    times = zip(gaps, record.column("step_s"), strict=True)
    return sum(gap * seconds for gap, seconds in times if math.isfinite(seconds))


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _asset(name: str) -> str:
    return (resources.files("packtrain.report") / name).read_text(encoding="utf-8")


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
_FOLDED = ("evaluation", "samples", "events", "data", "configuration", "machine")
_COMPARED_FACTS = {
    "dataset hash": ("dataset", "hash"),
    "tokenizer hash": ("dataset", "tokenizer_hash"),
    "parameters": ("parameters",),
    "device": ("hardware", "device"),
    "processes": ("hardware", "world_size"),
    "git commit": ("git_commit",),
    "packtrain": ("versions", "packtrain"),
    "torch": ("versions", "torch"),
}
