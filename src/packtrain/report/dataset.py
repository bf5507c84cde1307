"""Decides how the token ledger is shown: where each document and token went, from the raw text to the training stream."""

import math
from typing import Any

from packtrain.report import figures, sections
from packtrain.report.collect import RunRecord, number
from packtrain.report.markup import Child, Markup, el

_SIDES = {"train": "Training", "validation": "Held out"}
_UNITS = {"documents": "Documents", "tokens": "Tokens", "utf8_bytes": "UTF-8 bytes"}


def ledger(record: RunRecord) -> Markup:
    """The dataset that the run was trained on: its ledger as tables, then what it is and how it was made."""
    found = record.manifest.get("dataset")
    known = found.get("ledger") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(known, dict) or not known:
        return sections.section("data", "Data", el("p", "The run's manifest holds no token ledger.", class_="absent"))
    about = {k: v for k, v in found.items() if k not in ("ledger", "recipe")}
    parts = [el("div", el("h4", "Dataset"), sections.pairs(about))]
    if isinstance(found.get("recipe"), dict):
        parts.append(el("div", el("h4", "Recipe"), sections.pairs(found["recipe"])))
    return sections.section(
        "data",
        "Data",
        _sides(known),
        _left_out(known),
        el("p", " ".join(_remarks(known)), class_="note") if _remarks(known) else None,
        el("div", *parts, class_="columns"),
        lead="Where every document and token went, from the raw text to the training stream, with the reason for what is missing.",
    )


def _sides(known: dict[str, Any]) -> Markup | None:
    """Documents, tokens and bytes of either side, with the side's share."""
    units = {key: name for key, name in _UNITS.items() if _has_sides(known.get(key))}
    if not units:
        return sections.pairs(known)
    rows: list[list[Child]] = []
    for side, name in _SIDES.items():
        cells: list[Child] = [name]
        for key in units:
            total = sum(number(known[key].get(s)) for s in _SIDES)
            cells += [figures.exact(number(known[key].get(side))), _share(number(known[key].get(side)), total)]
        rows.append(cells)
    totals: list[Child] = ["Both"]
    for key in units:
        totals += [figures.exact(sum(number(known[key].get(s)) for s in _SIDES)), ""]
    head = ["Kept", *(text for name in units.values() for text in (name, "share"))]
    return sections.table(head, [*rows, totals], numbers=range(1, len(head)))


def _left_out(known: dict[str, Any]) -> Markup | None:
    """Documents that are on neither side, by reason, with where some of them lie."""
    counts = known.get("documents")
    if not isinstance(counts, dict) or not math.isfinite(number(counts.get("in"))):
        return None
    reasons = {"duplicates": counts.get("duplicates"), **_table(counts.get("dropped"))}
    samples = _table(known.get("samples"))
    rows: list[list[Child]] = []
    for reason, count in reasons.items():
        if number(count) > 0:
            seen = samples.get(reason)
            examples = ", ".join(str(place) for place in seen) if isinstance(seen, list) else ""
            share = _share(number(count), number(counts["in"]))
            rows.append([reason.replace("_", " "), figures.exact(number(count)), share, examples])
    kept = sum(number(counts.get(side)) for side in _SIDES)
    if not rows:
        return el("p", f"All {figures.exact(number(counts['in']))} documents of the source were kept.", class_="note")
    caption = f"{figures.exact(number(counts['in']))} documents came in, {figures.exact(kept)} were kept."
    return sections.table(("Left out", "Documents", "share", "For example"), rows, caption=caption, numbers=(1, 2))


def _remarks(known: dict[str, Any]) -> list[str]:
    remarks = []
    density = number(known.get("bytes_per_token"))
    if math.isfinite(density):
        remarks.append(f"A token stands for {density:.2f} bytes of text on average.")
    split = known.get("random_split")
    leaked = number(split.get("leaked")) if isinstance(split, dict) else math.nan
    if math.isfinite(leaked):
        remarks.append(
            f"The split is by content, so no held-out document has a copy in training; a random split without removing "
            f"duplicates would have leaked {leaked:.2%} of them."
        )
    return remarks


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _has_sides(counts: Any) -> bool:
    return isinstance(counts, dict) and all(math.isfinite(number(counts.get(side))) for side in _SIDES)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"
