"""Decides what a report says about one run: samples, configuration and machine, and the tables of every section."""

import json
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from packtrain.config.words import show
from packtrain.report import figures
from packtrain.report.collect import Continuation, RunRecord, Setting
from packtrain.report.markup import Child, Markup, el, join
from packtrain.report.numbers import number

_SHOWN_STEPS = 5


def section(key: str, title: str, *children: Child, lead: str = "") -> Markup:
    """A part of the page with its heading."""
    return el("section", el("h2", title), el("p", lead, class_="lead") if lead else None, *children, id=key)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    caption: str = "",
    numbers: Sequence[int] = (),
    css: str = "",
) -> Markup:
    """A table whose first column names the row and stays while the others scroll; the columns in `numbers` are right-aligned."""
    align = ["num" if i in numbers else None for i in range(len(head))]
    header = el(
        "thead", el("tr", *(el("th", text, scope="col", class_=c) for text, c in zip(head, align, strict=True)))
    )
    body = [
        el(
            "tr",
            el("th", row[0], scope="row"),
            *(el("td", v, class_=c) for v, c in zip(row[1:], align[1:], strict=True)),
        )
        for row in rows
    ]
    return scrolling(el("table", header, el("tbody", *body)), caption, name=caption or f"{head[0]} and more", css=css)


def scrolling(grid: Markup, caption: str, *, name: str, css: str = "") -> Markup:
    """A table that scrolls sideways by itself where it is too wide, below its caption, which does not."""
    # With the focus, the arrow keys scroll it.
    box = el("div", grid, class_=f"wide {css}".strip(), tabindex="0", role="region", aria_label=name)
    return join(el("p", caption, class_="caption") if caption else None, box)


def bars(
    head: Sequence[str], rows: Sequence[tuple[Sequence[Child], float]], caption: str, *, marked: int | None = None
) -> Markup:
    """A table of names and numbers that ends in a bar. A row is its cells and the bar's share of the width, NaN for no bar."""
    css = [None, *["num"] * (len(head) - 1), "bar"]
    heads = [el("th", text, scope="col", class_=c) for text, c in zip([*head, ""], css, strict=True)]
    body = [
        el(
            "tr",
            el("th", cells[0], scope="row"),
            *(el("td", cell, class_="num") for cell in cells[1:]),
            el("td", el("span", style=f"width:{100 * share:.1f}%") if math.isfinite(share) else None, class_="bar"),
            class_="model" if i == marked else None,
        )
        for i, (cells, share) in enumerate(rows)
    ]
    return scrolling(el("table", el("thead", el("tr", *heads)), el("tbody", *body)), caption, name=caption or head[0])


def strip(cells: Sequence[tuple[str, str, str]]) -> Markup:
    """Key figures side by side, each with its name and a remark."""
    return el("dl", *(el("div", el("dt", a), el("dd", b, el("small", c))) for a, b, c in cells), class_="key")


def pairs(values: dict[str, Any]) -> Markup:
    """A table of names and values without column headings; nested values are indented below their name."""
    rows = []
    for depth, key, value in _flat(values):
        shown = shown_as(value)
        rows.append(
            el("tr", el("th", key.replace("_", " "), scope="row"), el("td", shown), class_="sub" if depth else None)
        )
    return el("table", el("tbody", *rows))


def missing(records: Sequence[RunRecord]) -> Markup | None:
    """What the files of the runs lack, in a box; None if nothing."""
    sentences = [f"{r.name}: {s}" if len(records) > 1 else s for r in records for s in r.missing]
    if not sentences:
        return None
    return el(
        "div", el("p", "What is missing"), el("ul", *(el("li", s) for s in sentences)), class_="missing", role="note"
    )


def yardsticks(record: RunRecord) -> list[tuple[str, float]]:
    """The simpler methods that `packtrain evaluate` measured beside the model, each with its bits per byte."""
    rows = [
        (str(r.get("name", "")), number(r.get("bits_per_byte"))) for r in dicts(record.evaluation.get("yardsticks"))
    ]
    return [(name, bits) for name, bits in rows if math.isfinite(bits) and bits > 0]


def samples(record: RunRecord) -> Markup:
    """What the model wrote for each prompt during training; if there are many steps, most are folded away."""
    if not record.samples:
        text = "No samples have been written yet, or evaluate.prompts is empty."
        return section("samples", "Samples over training", el("p", text, class_="absent"))
    by_prompt: dict[str, list[Continuation]] = {}
    for sample in record.samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    parts: list[Markup] = []
    for prompt, found in by_prompt.items():
        last = len(found) - 1
        shown = {round(i * last / (_SHOWN_STEPS - 1)) for i in range(_SHOWN_STEPS)}
        parts.append(el("h4", "Prompt ", el("code", json.dumps(prompt, ensure_ascii=False))))
        parts.append(el("div", *(_sample(s) for i, s in enumerate(found) if i in shown), class_="samples"))
        folded = [_sample(s) for i, s in enumerate(found) if i not in shown]
        if folded:
            parts.append(
                el(
                    "details",
                    el("summary", f"{len(folded)} more step{'s' * (len(folded) > 1)}"),
                    el("div", *folded, class_="samples"),
                )
            )
    return section(
        "samples", "Samples over training", *parts, lead="The same prompts, continued by the model at each validation."
    )


def configuration(record: RunRecord) -> Markup:
    """The settings that differ from the defaults, each with its default; all others are folded away."""
    if not record.settings:
        return section("configuration", "Configuration", el("p", "config.toml cannot be read.", class_="absent"))
    changed = [s for s in record.settings if s.is_changed]
    others = [s for s in record.settings if not s.is_changed]
    # Without known defaults nothing is marked, and nothing is folded.
    parts: list[Child] = [_grouped(changed or others)]
    if changed and others:
        summary = el("summary", f"{len(others)} settings are at their defaults")
        parts.append(el("details", summary, _grouped(others)))
    lead = "What differs from packtrain's defaults, with the default below each value." if changed else ""
    return section("configuration", "Configuration", *parts, lead=lead)


def _grouped(settings: Sequence[Setting]) -> Markup:
    parts = []
    for name, group in groupby(settings, key=lambda s: s.key.partition(".")[0]):
        parts.append(el("div", el("h4", name), el("table", el("tbody", *(_setting(s) for s in group)))))
    return el("div", *parts, class_="columns")


def machine(record: RunRecord) -> Markup:
    """Hardware, versions, and the command that started the run."""
    manifest = record.manifest
    parts = []
    for key, title in (("hardware", "Hardware"), ("versions", "Versions")):
        values = manifest.get(key)
        if isinstance(values, dict) and values:
            parts.append(el("div", el("h4", title), pairs(values)))
    command = manifest.get("command")
    words = command if isinstance(command, list) else [command] if command else []
    origin = {
        "created": figures.moment(number(manifest.get("created"))) if number(manifest.get("created")) > 0 else None,
        "git_commit": manifest.get("git_commit"),
        "command": " ".join(str(word) for word in words) or None,
        "folder": str(record.folder),
    }
    parts.append(el("div", el("h4", "Origin"), pairs({k: v for k, v in origin.items() if v is not None})))
    return section("machine", "Machine and versions", el("div", *parts, class_="columns"))


def setting_text(value: Any) -> str:
    """A value of the configuration as a user would write it, and a large number with commas."""
    is_large = isinstance(value, int) and abs(value) >= 10_000
    return f"{value:,}" if is_large else show(value)


def _setting(setting: Setting) -> Markup:
    shown: list[Child] = [setting_text(setting.value)]
    if setting.is_changed:
        shown.append(el("small", f"default: {setting_text(setting.default)}"))
    name = setting.key.partition(".")[2] or setting.key
    return el("tr", el("th", name, scope="row"), el("td", *shown), class_="changed" if setting.is_changed else None)


def _sample(sample: Continuation) -> Markup:
    return el(
        "div",
        el("div", f"step {figures.exact(sample.step)}", class_="at"),
        el("pre", el("b", sample.prompt), sample.text),
        class_="sample",
    )


def _flat(values: dict[str, Any], depth: int = 0) -> list[tuple[int, str, Any]]:
    rows: list[tuple[int, str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += [(depth, str(key), ""), *_flat(value, depth + 1)] if value else []
        else:
            is_size = str(key).endswith("_bytes") and str(key) != "utf8_bytes" and is_number(value)
            rows.append((depth, str(key), figures.size(value) if is_size else value))
    return rows


def shown_as(value: Any) -> str:
    """A value of a file for a reader: a dash for none, digits in groups, lists and tables as JSON."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number."""
    return math.isfinite(number(value)) and not isinstance(value, str)


def dicts(value: Any) -> list[dict[str, Any]]:
    """The tables in a list of a file."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
