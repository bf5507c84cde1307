"""Decides how several runs are compared: only on what compares, the best of each figure marked, and what differs before what does not."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from packtrain.report import curves, dataset, evaluations, figures, history, sections, summary
from packtrain.report.charts import render
from packtrain.report.collect import Continuation, RunRecord, differing_settings
from packtrain.report.document import contents
from packtrain.report.held_out import HeldOutText, evaluated_on, group_by_text, has_same_tokens, validated_on
from packtrain.report.markup import Child, Markup, el, join
from packtrain.report.numbers import number

_HASH_DIGITS = 12
_SHOWN_STEPS = 5


def compare(records: Sequence[RunRecord]) -> list[Markup]:
    """The header and the main part of the page."""
    records = _named_apart(records)
    drawn = [render(figure) for figure in curves.learning(records)]
    machinery = [render(figure) for figure in curves.machinery(records)]
    nothing = el("p", "Nothing to draw yet.", class_="absent")
    parts = [
        sections.section("results", "Results", *_results(records)),
        sections.section("learning", "Learning", *(drawn or [nothing])),
        sections.section("samples", "Samples side by side", *_samples(records), lead=_SAMPLES_LEAD),
        sections.section("differences", "What differs", *_differences(records)),
        sections.section("machinery", "Machinery", el("div", *machinery, class_="pair") if machinery else nothing),
    ]
    header = el(
        "header",
        el("p", "Comparison of training runs", class_="kicker"),
        el("h1", f"{len(records)} runs compared"),
        el("p", join(*(record.name for record in records), separator=" · "), class_="standfirst"),
        contents({**_CONTENTS, **{f"run{i}": r.name for i, r in enumerate(records)}}),
        sections.missing(records),
    )
    return [header, el("main", *parts, *(_folded(i, record) for i, record in enumerate(records)))]


def _results(records: Sequence[RunRecord]) -> list[Markup]:
    """A table with a row for each run, in which the best of each figure is marked, and what of it compares."""
    validated, evaluated = [validated_on(r) for r in records], [evaluated_on(r) for r in records]
    letters, final = group_by_text(validated), group_by_text(evaluated)
    losses = [(summary.lowest_loss(r) or (math.nan, 0))[0] for r in records]
    bits = [_or_nan(summary.validated_bits(r)[0]) for r in records]
    whole = [_or_nan(summary.evaluated_bits(r)) for r in records]
    speeds = [summary.median_speed(r) for r in records]
    loss_groups = letters if has_same_tokens(records) else [f"{letter}{i}" for i, letter in enumerate(letters)]
    columns: list[tuple[str, list[Child]]] = [
        ("Parameters", _plain([number(r.manifest.get("parameters")) for r in records], figures.short)),
        ("Steps", _plain([r.last_step for r in records], figures.exact)),
        ("Tokens", _plain([summary.tokens_seen(r) for r in records], figures.short)),
        ("Lowest validation loss", _marked(losses, loss_groups, lambda v: f"{v:.4f}")),
        ("Bits per byte, last validation", _marked(bits, letters, lambda v: f"{v:.3f}")),
        ("Bits per byte, evaluation", _marked(whole, final, lambda v: f"{v:.3f}")),
        ("Median tokens/s", _marked(speeds, ["one"] * len(records), figures.short, is_highest=True)),
        ("Time in steps", _plain([summary.training_seconds(r) or math.nan for r in records], figures.duration)),
    ]
    if len(set(letters)) > 1:
        columns.insert(0, ("Validated on", list(letters)))
    rows = [[record.name, *(column[i] for _, column in columns)] for i, record in enumerate(records)]
    grid = sections.table(["Run", *(name for name, _ in columns)], rows, numbers=range(1, len(columns) + 1))
    notes = [_explain("The validations during training", validated, letters, bits, records)]
    notes.append(_explain("The evaluations", evaluated, final, whole, records))
    if not has_same_tokens(records):
        notes.append("The runs have different tokenizers, so their losses per token do not compare; bits per byte do.")
    return [grid, *(el("p", note, class_="note") for note in notes if note)]


def _explain(
    what: str,
    texts: Sequence[HeldOutText],
    letters: Sequence[str],
    values: Sequence[float],
    records: Sequence[RunRecord],
) -> str:
    """Which figures compare, and why the others do not."""
    known = [i for i, value in enumerate(values) if math.isfinite(value)]
    if len(known) < 2:
        return ""
    if len({letters[i] for i in known}) == 1:
        return f"{what} compare: each is on {texts[known[0]].words}."
    groups: dict[str, list[int]] = {}
    for i in known:
        groups.setdefault(letters[i], []).append(i)
    told = [f"{', '.join(records[i].name for i in of)}: {texts[of[0]].words}" for of in groups.values()]
    return f"{what} were not all on the same text, and compare only where they were ({'; '.join(told)})."


def _marked(
    values: Sequence[float], groups: Sequence[str], write: Callable[[float], str], *, is_highest: bool = False
) -> list[Child]:
    """The figures, with the best of each group of two or more marked."""
    best: dict[str, float] = {}
    for group in set(groups):
        found = [v for v, g in zip(values, groups, strict=True) if g == group and math.isfinite(v)]
        if len(found) > 1 and min(found) < max(found):
            best[group] = max(found) if is_highest else min(found)
    return [
        "–"
        if not math.isfinite(value)
        else el("b", write(value), el("small", "fastest" if is_highest else "best"), class_="best")
        if best.get(group) == value
        else write(value)
        for value, group in zip(values, groups, strict=True)
    ]


def _plain(values: Sequence[float], write: Callable[[float], str]) -> list[Child]:
    return [write(value) if math.isfinite(value) else "–" for value in values]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _samples(records: Sequence[RunRecord]) -> list[Markup]:
    """For each prompt, what each run wrote: at its last sample, then, folded away, at steps on the way."""
    prompts = list(dict.fromkeys(sample.prompt for record in records for sample in record.samples))
    if not prompts:
        return [el("p", "No samples have been written yet, or evaluate.prompts is empty.", class_="absent")]
    parts = []
    for prompt in prompts:
        written = [{s.step: s for s in record.samples if s.prompt == prompt} for record in records]
        last = [of[max(of)] if of else None for of in written]
        parts.append(el("h4", "Prompt ", el("code", json.dumps(prompt, ensure_ascii=False))))
        parts.append(_side_by_side(records, [("last", last)]))
        steps = sorted({step for of in written for step in of})
        chosen = sorted({steps[round(i * (len(steps) - 1) / (_SHOWN_STEPS - 1))] for i in range(_SHOWN_STEPS)})
        if len(steps) > 1:
            rows = [(figures.exact(step), [of.get(step) for of in written]) for step in chosen]
            word = (
                f"{len(chosen)} of {len(steps)} steps with samples"
                if len(steps) > len(chosen)
                else f"All {len(steps)} steps"
            )
            parts.append(el("details", el("summary", word), _side_by_side(records, rows)))
    return parts


def _side_by_side(records: Sequence[RunRecord], rows: Sequence[tuple[str, Sequence[Continuation | None]]]) -> Markup:
    body = [
        [
            name,
            *(
                "–"
                if s is None
                else join(el("small", f"step {figures.exact(s.step)}"), el("pre", el("b", s.prompt), s.text))
                for s in found
            ),
        ]
        for name, found in rows
    ]
    return sections.table(["Step", *(record.name for record in records)], body, css="beside")


def _differences(records: Sequence[RunRecord]) -> list[Markup]:
    """The settings and facts that differ, short hashes among them; those that are the same are folded away."""
    rows: list[list[Child]] = [
        [key, *(sections.setting_text(v) for v in values)] for key, values in differing_settings(list(records))
    ]
    alike: list[list[Child]] = []
    for label, keys in _COMPARED_FACTS.items():
        facts = [_fact(record.manifest, keys) for record in records]
        if label.endswith(("hash", "commit")):
            facts = _shorten(facts)
        if any(fact != facts[0] for fact in facts):
            rows.append([label, *facts])
        elif facts[0] != "–":
            alike.append([label, facts[0]])
    differing = {str(row[0]) for row in rows}
    for setting in records[0].settings:
        if setting.key not in differing:
            alike.append([setting.key, sections.setting_text(setting.value)])
    parts = [
        sections.table(["Setting", *(record.name for record in records)], rows)
        if rows
        else el("p", "No setting differs.", class_="absent")
    ]
    if alike:
        folded = el("summary", f"{len(alike)} settings and facts are the same in every run")
        parts.append(el("details", folded, sections.table(["Setting", "In every run"], alike)))
    return parts


def _fact(manifest: dict[str, Any], keys: tuple[str, ...]) -> str:
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return "–" if value is None else str(value)


def _shorten(hashes: Sequence[str]) -> list[str]:
    """The beginnings of hashes, as short as tells different ones apart."""
    length = _HASH_DIGITS
    while len({h[:length] for h in hashes}) < len(set(hashes)):
        length += 4
    return [h[:length] for h in hashes]


def _folded(index: int, record: RunRecord) -> Markup:
    """All sections about one of several runs. They have no ids, which would repeat for each run."""
    plain = [
        Markup(part(record).replace(f'<section id="{key}">', "<section>", 1)) for key, part in _ABOUT_ONE_RUN.items()
    ]
    return el("details", el("summary", record.name), *plain, class_="run", id=f"run{index}")


def _named_apart(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs, with those whose folders have the same name called by their paths."""
    names = [record.name for record in records]
    return [r if names.count(r.name) == 1 else replace(r, name=str(r.folder)) for r in records]


_SAMPLES_LEAD = "The same prompt, continued by each run at its last sample."
_CONTENTS = {
    "results": "Results",
    "learning": "Learning",
    "samples": "Samples",
    "differences": "What differs",
    "machinery": "Machinery",
}
_ABOUT_ONE_RUN = {
    "evaluation": evaluations.evaluation,
    "samples": sections.samples,
    "events": history.events,
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
