"""Decides how `inspect` shows a run."""

import datetime
import time
from pathlib import Path
from typing import Any

from packtrain.cli import screen
from packtrain.cli.following import show_next, write_command
from packtrain.cli.runs import age
from packtrain.report.figures import short, size

_SHOWN_EVENTS = 12


def show_run(run: dict[str, Any], rows: str | None) -> None:
    """Prints what `runs.overview.describe_folder` found, and a sentence about the rows that are trained on."""
    screen.facts(_facts(run), on_stdout=True)
    if run["checkpoints"]:
        _show_checkpoints(run["checkpoints"], Path(run["folder"]))
    if run["changes"]:
        screen.heading("settings changed since the start")
        for change in run["changes"]:
            _say(f"step {change['step']}  {change['key']}: {_value(change['before'])} -> {_value(change['after'])}")
    events = run["events"]
    if events:
        screen.heading("events")
        if len(events) > _SHOWN_EVENTS:
            _say(f"{len(events) - _SHOWN_EVENTS:,} earlier ones are in events.jsonl")
        for event in events[-_SHOWN_EVENTS:]:
            _say(_describe_event(event))
    if run["problems"]:
        screen.heading("what is wrong")
        for problem in run["problems"]:
            _say(problem)
    if rows is not None:
        _say(f"\n{rows}")
    if run["next"]:
        show_next(*(write_command(*words) for words in run["next"]))


def _facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values; only what is known."""
    found: list[tuple[str, str | None]] = [
        ("run", run["folder"]),
        ("state", f"{run['state']}: {run['meaning']}" + (f" ({run['reason']})" if run["reason"] else "")),
        ("progress", _progress(run)),
        ("last loss", None if run["loss"] is None else f"{run['loss']:.4f} nats per token in training"),
        ("validation", _validation(run)),
        ("speed", None if run["tokens_per_s"] is None else f"{run['tokens_per_s']:,.0f} tokens/s"),
        ("written", None if run["seen"] is None else f"{age(time.time() - run['seen'])} ago"),
        ("model", _model(run)),
        *(("dataset" if number == 0 else "", _dataset(each)) for number, each in enumerate(run["datasets"])),
        ("batch", _batch(run)),
        ("precision", run["precision"]),
        ("device", _device(run)),
        ("packtrain", (run["versions"] or {}).get("packtrain") if isinstance(run["versions"], dict) else None),
    ]
    return [(name, str(text)) for name, text in found if text is not None]


def _progress(run: dict[str, Any]) -> str | None:
    if run["step"] is None:
        return None
    step = f"step {run['step']:,}"
    if run["steps"]:
        step += f" of {run['steps']:,} ({min(1.0, run['step'] / run['steps']):.0%})"
    return step if run["tokens"] is None else f"{step}, {short(run['tokens'])} tokens"


def _validation(run: dict[str, Any]) -> str | None:
    if run["val_loss"] is None:
        return None
    bits = "" if run["val_bpb"] is None else f", {run['val_bpb']:.4f} bits per byte"
    return f"loss {run['val_loss']:.4f}{bits}"


def _model(run: dict[str, Any]) -> str | None:
    parts = []
    if run["num_layers"] is not None and run["hidden_size"] is not None:
        parts.append(f"{run['num_layers']} layers x {run['hidden_size']} wide")
    if isinstance(run["parameters"], int):
        parts.append(f"{short(run['parameters'])} parameters")
    return ", ".join(parts) or None


def _dataset(dataset: dict[str, Any]) -> str:
    tokens = "" if dataset["tokens"] is None else f", {short(dataset['tokens'])} tokens"
    return f"{dataset['folder']}{tokens}"


def _batch(run: dict[str, Any]) -> str | None:
    batch, length = run["global_batch_tokens"], run["seq_len"]
    if not (isinstance(batch, int) and isinstance(length, int) and length > 0):
        return None
    return f"{batch:,} tokens = {batch // length:,} rows of {length:,}"


def _device(run: dict[str, Any]) -> str | None:
    if run["device"] is None:
        return None
    many = isinstance(run["world_size"], int) and run["world_size"] > 1
    return f"{run['device']}, {run['world_size']} processes" if many else run["device"]


def _show_checkpoints(checkpoints: list[dict[str, Any]], folder: Path) -> None:
    screen.heading(f"checkpoints in {folder / 'checkpoints'}")
    table = screen.table("step", "size", "validation loss", "")
    for each in checkpoints:
        note = "not whole" if not each["is_whole"] else "best" if each["is_best"] else ""
        loss = "–" if each["val_loss"] is None else f"{each['val_loss']:.4f}"
        table.add_row(f"{each['step']:,}", size(each["size_bytes"]), loss, note)
    screen.print_table(table)
    screen.console.print(f"{size(sum(each['size_bytes'] for each in checkpoints))} in all")


def _describe_event(event: dict[str, Any]) -> str:
    at = event.get("time")
    try:
        when = datetime.datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M") if isinstance(at, int | float) else "–"
    except (ValueError, OverflowError, OSError):
        when = "–"
    step = f"step {event['step']:,}" if isinstance(event.get("step"), int) else ""
    details = "; ".join(
        f"{key} {_value(event[key])}" if key != "reason" else _value(event[key])
        for key in ("reason", "to_step", "what", "file", "seconds", "passed_over")
        if event.get(key) is not None
    )
    return f"{when}  {step:<12}  {event.get('event', 'an unknown event')}" + (f": {details}" if details else "")


def _value(value: Any) -> str:
    return "unset" if value is None else " ".join(str(value).split())[:200]


def _say(text: str) -> None:
    screen.console.print(text, soft_wrap=True, markup=False)
