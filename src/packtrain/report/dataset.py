"""Decides how the token ledger is shown: where each document and token went, from the raw text to the splits."""

import math
from collections.abc import Sequence
from typing import Any

from packtrain.data.format.account import Entry, describe_loss, describe_split, find_fault, find_imbalance, list_entries
from packtrain.report import figures, sections
from packtrain.report.collect import RunRecord
from packtrain.report.markup import Child, Markup, el
from packtrain.report.numbers import number

LEAD = "Where every document and token went, from the raw text to the training split, with a reason for each that is missing."
_SIDES = {"train": "Training", "validation": "Validation"}


def ledger(record: RunRecord) -> Markup:
    """The dataset that the run was trained on: first its ledger, then what it is and how it was made."""
    found = record.manifest.get("dataset")
    if isinstance(found, dict) and isinstance(found.get("sources"), list):
        return _mixture(record, found, [source for source in found["sources"] if isinstance(source, dict)])
    known = found.get("ledger") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(known, dict) or not known:
        return sections.section("data", "Data", el("p", "The run's manifest has no token ledger.", class_="absent"))
    about = {k: v for k, v in found.items() if k not in ("ledger", "recipe")}
    parts = [el("div", el("h4", "Dataset"), sections.pairs(about))]
    if isinstance(found.get("recipe"), dict):
        parts.append(el("div", el("h4", "Recipe"), sections.pairs(found["recipe"])))
    return sections.section(
        "data", "Data", *account(known, _table(found, "recipe")), el("div", *parts, class_="columns"), lead=LEAD
    )


def _mixture(record: RunRecord, found: dict[str, Any], sources: Sequence[dict[str, Any]]) -> Markup:
    """The datasets of a mixture: the share and the loss of each, then the ledger of each."""
    total = sum(number(source.get("weight")) for source in sources)
    last = record.validation[-1] if record.validation else {}
    rows: list[list[Child]] = []
    for source in sources:
        name, limit, tokens = str(source.get("name")), source.get("max_epochs"), _table(source, "ledger", "tokens")
        loss, bits = (number(last.get(f"{figure}/{name}")) for figure in ("val_loss", "val_bpb"))
        rows.append(
            [
                name,
                _share(number(source.get("weight")), total),
                "none" if limit is None else f"{number(limit):g}",
                figures.exact(number(tokens.get("train"))),
                f"{loss:.4f}" if math.isfinite(loss) else "–",
                f"{bits:.4f}" if math.isfinite(bits) else "–",
            ]
        )
    head = ("Source", "share of tokens", "max epochs", "training tokens", "held-out loss", "bits per byte")
    parts: list[Markup] = [sections.table(head, rows, caption="The mixture.", numbers=range(1, len(head)))]
    for source in sources:
        about = {key: value for key, value in source.items() if key not in ("ledger", "recipe")}
        parts.append(el("h3", str(source.get("name"))))
        parts += account(_table(source, "ledger"), _table(source, "recipe"))
        recipe = el("div", el("h4", "Recipe"), sections.pairs(_table(source, "recipe")))
        parts.append(el("div", el("div", el("h4", "Dataset"), sections.pairs(about)), recipe, class_="columns"))
    about = {key: value for key, value in found.items() if key != "sources"}
    return sections.section("data", "Data", *parts, el("h3", "Whole mixture"), sections.pairs(about), lead=LEAD)


def _table(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """An inner table by its path; an empty one if the file lacks it."""
    for key in keys:
        inner = tree.get(key)
        tree = inner if isinstance(inner, dict) else {}
    return tree


def account(known: dict[str, Any], recipe: dict[str, Any]) -> list[Markup]:
    """Every entry of a ledger with its documents, bytes and tokens; examples of what was left out; remarks."""
    if find_fault(known) is not None:
        # The manifest may be damaged, or come from another version.
        return [sections.pairs(known)]
    found, total = list_entries(known), int(known["documents"]["in"])
    parts = [_entries(found, total, known)]
    examples = _examples(known)
    if examples is not None:
        parts.append(examples)
    remarks = _remarks(known, recipe)
    if remarks:
        parts.append(el("p", " ".join(remarks), class_="note"))
    return parts


def _entries(found: Sequence[Entry], total: int, known: dict[str, Any]) -> Markup:
    rows: list[list[Child]] = [
        [
            _SIDES.get(entry.name, entry.name.replace("_", " ")),
            figures.exact(entry.documents),
            _share(entry.documents, total),
            "–" if entry.utf8_bytes is None else figures.exact(entry.utf8_bytes),
            _tokens(entry),
        ]
        for entry in found
        if entry.documents or entry.is_kept
    ]
    text = sum(entry.utf8_bytes or 0 for entry in found)
    everything = sum(entry.estimated_tokens for entry in found)
    left_out = any(entry.documents and not entry.is_kept for entry in found)
    came_in = f"about {figures.exact(everything)}" if left_out else figures.exact(everything)
    rows.append(["Total", figures.exact(total), "", figures.exact(text), came_in])
    problem = find_imbalance(known)
    caption = f"{figures.exact(total)} documents came in and {figures.exact(_kept(found))} were kept"
    caption += f". The ledger does not balance: {problem}." if problem else "; every one is accounted for."
    head = ("What became of them", "Documents", "share", "UTF-8 bytes", "Tokens")
    return sections.table(head, rows, caption=caption, numbers=range(1, len(head)))


def _tokens(entry: Entry) -> str:
    if entry.tokens is not None:
        return figures.exact(entry.tokens)
    return f"about {figures.exact(entry.estimated_tokens)}" if entry.utf8_bytes else "–"


def _kept(found: Sequence[Entry]) -> int:
    return sum(entry.documents for entry in found if entry.is_kept)


def _examples(known: dict[str, Any]) -> Markup | None:
    """Where to find some of the documents that were left out."""
    samples = known.get("samples")
    rows: list[list[Child]] = [
        [str(reason).replace("_", " "), ", ".join(str(place) for place in seen)]
        for reason, seen in (samples.items() if isinstance(samples, dict) else ())
        if isinstance(seen, list) and seen
    ]
    return sections.table(("Left out", "For example"), rows) if rows else None


def _remarks(known: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    remarks = []
    if known.get("imported"):
        remarks.append(f"The ids were imported from {known['imported']} files, and their text was decoded from them.")
    loss = describe_loss(known)
    if loss is not None:
        remarks.append(f"{loss[0].upper()}{loss[1:]}.")
    density = number(known.get("bytes_per_token"))
    if math.isfinite(density):
        remarks.append(
            f'A token stands for {density:.2f} bytes of text on average. Token counts marked "about" are estimated from that; '
            "all others are exact."
        )
    split = known.get("random_split")
    leaked = number(split.get("leaked")) if isinstance(split, dict) else math.nan
    given = _given_split(known, recipe)
    if given is not None:
        remarks.append(given)
    elif math.isfinite(leaked):
        remarks.append(
            f"The split is by content, so no validation document has a copy in training. A random split that keeps "
            f"duplicates would have leaked {leaked:.2%} of them."
        )
    return remarks


def _given_split(known: dict[str, Any], recipe: dict[str, Any]) -> str | None:
    """How a split was made that content does not decide."""
    try:
        found = describe_split(recipe, known)
    except (KeyError, TypeError, ValueError, AttributeError):
        # The manifest may be damaged.
        return None
    return None if found is None else f"{found[:1].upper()}{found[1:]}."


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.2%}" if whole else "–"
