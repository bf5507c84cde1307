"""Decides how the events of a run are told: what happened besides its steps, and which settings changed."""

from collections.abc import Iterator
from typing import Any

from packtrain.report import figures, sections
from packtrain.report.collect import RunRecord
from packtrain.report.markup import Markup, el, join
from packtrain.report.numbers import number

_MAX_EVENTS = 200
_MAX_ORIGINS = 50


def origins(record: RunRecord) -> Markup | None:
    """The models and runs that a run's weights are from, oldest first; None if they were new."""
    last = record.manifest.get("started_from")
    if not isinstance(last, dict):
        return None
    earlier = last.get("history")
    chain = [each for each in [*(earlier if isinstance(earlier, list) else []), last] if isinstance(each, dict)]
    steps, tokens = (sum(int(n) for each in chain if (n := number(each.get(key))) >= 0) for key in ("step", "tokens"))
    lead = "The weights were not new when this run began."
    if tokens:
        lead += f" The runs before it trained them for {steps:,} steps and {tokens:,} tokens before its first step."
    rows = [(_origin(each), _trained(each), _remarks(each)) for each in chain[-_MAX_ORIGINS:]]
    head = ("From", "Trained for", "What was taken over")
    return sections.section("origins", "Where the weights are from", sections.table(head, rows), lead=lead)


def _origin(origin: dict[str, Any]) -> Markup:
    return join(sections.shown_as(origin.get("path")), el("small", sections.shown_as(origin.get("kind"))))


def _trained(origin: dict[str, Any]) -> str:
    if origin.get("kind") != "run":
        return "–"
    return f"{sections.shown_as(origin.get('step'))} steps and {sections.shown_as(origin.get('tokens'))} tokens"


def _remarks(origin: dict[str, Any]) -> str:
    """What of an origin was kept, and how equal it was, in a sentence."""
    words = []
    if origin.get("kind") == "run":
        words.append(
            f"optimizer state {origin.get('optimizer_state')}; place in the data: {origin.get('place_in_data')}"
        )
    parity, vocabulary = origin.get("parity"), origin.get("vocabulary")
    if isinstance(parity, dict):
        difference = f"{number(parity.get('max_difference')):.1e}"
        words.append(f"{parity.get('compared')} within {difference} of those of {parity.get('reference')} (measured)")
    if isinstance(vocabulary, dict):
        kept, new = (sections.shown_as(vocabulary.get(key)) for key in ("kept", "set_to_mean"))
        words.append(f"{kept} rows of the vocabulary kept, {new} set to the mean")
    return "; ".join(words)


def events(record: RunRecord) -> Markup:
    """What happened during the run, oldest first; saved checkpoints are only counted."""
    if not record.events:
        return sections.section("events", "Events", el("p", "None recorded.", class_="absent"))
    saved = [event for event in record.events if event.get("event") == "saved"]
    others = [event for event in record.events if event.get("event") != "saved"]
    rows = []
    for event in others[-_MAX_EVENTS:]:
        rest = {k: v for k, v in event.items() if k not in ("time", "event", "step") and not isinstance(v, dict)}
        at = number(event.get("time"))
        when = figures.moment(at).removesuffix(" UTC") if 0 <= at < 1e11 else "–"
        details = ", ".join([*(f"{k.replace('_', ' ')} {_brief(k, v)}" for k, v in rest.items()), *_changes(event)])
        rows.append(
            (when, sections.shown_as(event.get("step")), str(event.get("event", "")).replace("_", " "), details)
        )
    remarks = []
    if saved:
        count = f"{len(saved):,} checkpoints were" if len(saved) > 1 else "One checkpoint was"
        remarks.append(f"{count} saved, the last at step {sections.shown_as(saved[-1].get('step'))}.")
    if len(rows) < len(others):
        remarks.append(f"{len(others) - len(rows):,} earlier events are in events.jsonl.")
    grid = sections.table(("Time (UTC)", "Step", "Event", "Details"), rows, numbers=(1,)) if rows else None
    return sections.section("events", "Events", grid, lead=" ".join(remarks))


def _changes(event: dict[str, Any]) -> Iterator[str]:
    """The settings that changed when the run was resumed."""
    changed = event.get("changed")
    for key, values in changed.items() if isinstance(changed, dict) else ():
        if isinstance(values, list) and len(values) == 2:
            yield f"{key} changed from {sections.shown_as(values[0])} to {sections.shown_as(values[1])}"


def _brief(key: str, value: Any) -> str:
    """The beginning of a hash is enough to tell it apart."""
    return sections.shown_as(value)[:12] if key.endswith("hash") else sections.shown_as(value)
