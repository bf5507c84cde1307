"""Decides what a report says about evaluations: the model beside simpler methods, by length and place, and its figures in tasks."""

import math
from typing import Any

from packtrain.report import figures
from packtrain.report.collect import RunRecord
from packtrain.report.markup import Child, Markup, el, join
from packtrain.report.numbers import number
from packtrain.report.sections import bars, dicts, is_number, section, shown_as, table

# Standard errors on each side of a mean in which 95 % of a normal distribution lie.
_NORMAL_95 = 1.96


def evaluation(record: RunRecord) -> Markup:
    """The figures of `packtrain evaluate`, with bars that compare the model with simpler methods on the same documents."""
    found, tasks = record.evaluation, _tasks(record)
    model = found.get("model")
    if not isinstance(model, dict):
        nothing = el(
            "p", "Not evaluated yet. Run ", el("code", f"packtrain evaluate {record.folder}"), ".", class_="absent"
        )
        return section("evaluation", "Evaluation", nothing, *_others(record), *tasks)
    measured = [(f"This model, step {_step_of(found)}", model)]
    measured += [(str(row.get("name", "")), row) for row in dicts(found.get("yardsticks"))]
    methods = [(name, number(row.get("bits_per_byte")), str(row.get("sees", ""))) for name, row in measured]
    this_model = methods[0]
    methods.sort(key=lambda method: (not math.isfinite(method[1]), method[1]))
    widest = max((bits for _, bits, _ in methods if math.isfinite(bits)), default=1.0) or 1.0
    rows = [((join(name, el("small", sees)), figures.decimal(bits)), bits / widest) for name, bits, sees in methods]
    grid = bars(("Method, and what it sees", "Bits per byte"), rows, _caption(model), marked=methods.index(this_model))
    lead = f"{found.get('coverage', '')} {_describe_protocol(found.get('protocol'))}".strip()
    return section("evaluation", "Evaluation", grid, *_breakdown(found), *_others(record), *tasks, lead=lead)


def _step_of(found: dict[str, Any]) -> str:
    """The step that was measured, and whether the weights were an average over steps."""
    step, kind = str(shown_as(found.get("step"))), found.get("average")
    return f"{step}, average of the weights ({kind})" if isinstance(kind, str) else step


def _caption(model: dict[str, Any]) -> str:
    words = (
        f"Loss {figures.decimal(number(model.get('loss')), 4)} nats per token, perplexity "
        f"{figures.decimal(number(model.get('perplexity')), 2)}, over {_count(model.get('num_tokens'))} held-out "
        f"tokens that stand for {_count(model.get('num_bytes'))} bytes of text."
    )
    interval = model.get("interval")
    ends = _ends(interval)
    if ends is None or not isinstance(interval, dict):
        return words
    return (
        f"{words} Bits per byte {figures.decimal(number(model.get('bits_per_byte')))}, 95 % interval {ends} "
        f"({interval.get('method', 'method unknown')})."
    )


def _describe_protocol(protocol: Any) -> str:
    if not isinstance(protocol, dict) or protocol.get("name") != "documents":
        return ""
    return (
        f"Each document was scored by itself, in windows of {shown_as(protocol.get('window'))} tokens that repeat "
        f"{shown_as(protocol.get('overlap'))} of the one before."
    )


def _breakdown(found: dict[str, Any]) -> list[Markup]:
    """The loss by length of the document, and by place in the context, folded away."""
    grids = []
    for key, column, caption in (
        ("by_length", "bytes", "By length of the document."),
        ("by_position", "seen", "By how many tokens came before, in the context."),
    ):
        rows = dicts(found.get(key))
        if len(rows) < 2:
            continue
        has_documents = "documents" in rows[0]
        head = [column.capitalize(), *(["Documents"] if has_documents else []), "Tokens", "Loss", "Bits per byte"]
        body = [
            [
                str(row.get(column, "")),
                *([_count(row.get("documents"))] if has_documents else []),
                _count(row.get("tokens")),
                figures.decimal(number(row.get("loss"))),
                figures.decimal(number(row.get("bits_per_byte"))),
            ]
            for row in rows
        ]
        grids.append(el("div", table(head, body, caption=caption, numbers=range(1, len(head)))))
    summary = el("summary", "By length of the document, and by place in the context")
    return [el("details", summary, el("div", *grids, class_="columns"))] if grids else []


def _others(record: RunRecord) -> list[Markup]:
    """Every other evaluation on text: of other steps, by the other protocol, of other text."""
    rows: list[list[Child]] = []
    for found in record.measured:
        model, on = found.get("model"), found.get("dataset")
        if not isinstance(model, dict) or found.get("created") == record.evaluation.get("created"):
            continue
        protocol = found.get("protocol")
        name = str(protocol.get("name", "")) if isinstance(protocol, dict) else "rows"
        text = str(on.get("folder", "several datasets")) if isinstance(on, dict) else ""
        bits = figures.decimal(number(model.get("bits_per_byte")))
        rows.append([_step_of(found), name, text, bits, _ends(model.get("interval")) or "–"])
    if not rows:
        return []
    head = ("Step", "Protocol", "Text", "Bits per byte", "95 % interval")
    return [table(head, rows, caption="Other evaluations of this run.", numbers=(3, 4))]


def _tasks(record: RunRecord) -> list[Markup]:
    """Metrics of tasks, each with its interval: the newest step first."""
    rows: list[list[Child]] = []
    for found in sorted(record.measured, key=lambda one: -number(one.get("step")) if is_number(one.get("step")) else 0):
        if not isinstance(found.get("task"), str):
            continue
        limit = found.get("limit")
        part = el("small", f"the first {_count(limit)} questions") if limit is not None else None
        for metric in dicts(found.get("metrics")):
            value, error = number(metric.get("value")), number(metric.get("stderr"))
            reach = _NORMAL_95 * error
            ends = f"{value - reach:.4f} to {value + reach:.4f}" if math.isfinite(value + reach) else "–"
            rows.append(
                [
                    join(str(found["task"]), part),
                    _step_of(found),
                    str(metric.get("name", "")),
                    figures.decimal(value, 4),
                    ends,
                    shown_as(found.get("questions")),
                ]
            )
    if not rows:
        return []
    head = ("Task", "Step", "Metric", "Value", "95 % interval", "Questions")
    lead = (
        "Tasks of lm-evaluation-harness. The interval is 1.96 of the harness's standard errors on each side: what other questions of "
        "the same kind might have given."
    )
    return [el("h4", "Tasks"), table(head, rows, caption=lead, numbers=(1, 3, 4, 5))]


def _ends(interval: Any) -> str | None:
    ends = interval.get("bits_per_byte") if isinstance(interval, dict) else None
    if not isinstance(ends, list) or len(ends) != 2 or not all(is_number(end) for end in ends):
        return None
    return f"{number(ends[0]):.3f} to {number(ends[1]):.3f}"


def _count(value: Any) -> str:
    return figures.exact(value) if is_number(value) else "an unknown number of"
