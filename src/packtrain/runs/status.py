"""Decides what is said of a run's folder at a glance: whether it trains, how far it is, and what is wrong with its files.

Reads the ends of the logs alone, without torch, so that hundreds of runs take a second. It never fails for a file's content.
"""

import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from packtrain.config.train import TrainConfig
from packtrain.errors import GuardError
from packtrain.runs.layout import RunLayout, is_locked
from packtrain.runs.metrics import is_count
from packtrain.storage.json_file import MOST_BYTES, describe_os_error, parse_json
from packtrain.storage.regular import is_regular, read_regular

State = Literal["starting", "training", "finished", "stopped", "guard", "failed", "killed", "new", "unknown"]

MEANING: dict[State, str] = {
    "starting": "a process has just opened it",
    "training": "a process is training it now",
    "finished": "all steps are done",
    "stopped": "stopped by a signal, with its last step saved",
    "guard": "stopped by a guard, before a bad step reached the weights",
    "failed": "ended by an error",
    "killed": "no process is training it, and its log ends without a word: it was killed, or its machine went down",
    "new": "nothing was trained yet",
    "unknown": "its files do not say",
}

# Enough for some eighty lines of metrics; more is read only if there is no validation among them.
_TAIL_BYTES, _LONG_TAIL_BYTES = 1 << 14, 1 << 22
_ENDS: dict[str, State] = {"finished": "finished", "stopped": "stopped", "failed": "failed"}


@dataclass(frozen=True)
class RunStatus:
    """How far a run is, as its files say; None for what they do not say."""

    folder: Path
    state: State
    step: int | None
    steps: int | None
    """Planned."""
    tokens: int | None
    loss: float | None
    """Of the last logged step, in nats per token."""
    val_loss: float | None
    """Of the last validation, in nats per token."""
    val_bpb: float | None
    """Of the last validation, in bits per byte."""
    tokens_per_s: float | None
    seen: float | None
    """When one of its logs was last written, in seconds since 1970."""
    reason: str | None = None
    """Why it ended, if an error or a signal ended it."""
    problems: tuple[str, ...] = ()
    """What could not be read, a sentence each."""


@dataclass
class Tail:
    """The last lines of a JSON-lines file that are whole objects."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    num_broken: int = 0
    is_whole: bool = True
    """Whether these are all lines of the file."""


def read_status(folder: Path) -> RunStatus:
    """The status of the run in `folder`, whatever its files hold."""
    layout, problems = RunLayout(folder), list[str]()
    tree = read_tree(layout, problems)
    metrics = _read_metrics(layout.metrics, problems)
    events = read_tail(layout.events, problems, _LONG_TAIL_BYTES)
    last_event = _last(events, lambda line: isinstance(line.get("event"), str))
    training = _last(metrics, lambda line: "loss" in line and is_count(line.get("step")))
    validation = _last(metrics, lambda line: "val_loss" in line and is_count(line.get("step")))
    is_open = is_locked(layout)
    state = _judge(is_open, last_event, has_trained=bool(metrics))
    if not is_open and metrics and not events and not layout.events.exists():
        problems.append("events.jsonl is missing, so nothing says how it ended")
    ended = last_event if state in ("stopped", "guard", "failed") else {}
    return RunStatus(
        folder=folder,
        state=state,
        step=_last_step(training, validation, last_event),
        steps=_planned_steps(layout, tree, events, problems),
        tokens=training["tokens"] if is_count(training.get("tokens")) else None,
        loss=_number(training.get("loss")),
        val_loss=_number(validation.get("val_loss")),
        val_bpb=_number(validation.get("val_bpb")),
        tokens_per_s=_number(training.get("tokens_per_s")),
        seen=_last_written(layout),
        reason=str(ended["reason"]) if ended.get("reason") else None,
        problems=tuple(problems),
    )


def read_tree(layout: RunLayout, problems: list[str]) -> dict[str, Any]:
    """config.toml as nested tables, of any version; empty, with a problem, if it cannot be read."""
    data = _read(layout.config, problems, is_needed=True)
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        problems.append(f"config.toml is not TOML as packtrain writes it ({reason})")
        return {}


def read_tail(path: Path, problems: list[str], most_bytes: int) -> list[dict[str, Any]]:
    """The objects in the last `most_bytes` of a JSON-lines file. A line that is still being written is left out."""
    try:
        tail = _tail(path, most_bytes)
    except OSError as error:
        problems.append(f"{path.name}: {describe_os_error(error)}")
        return []
    _note_broken(path, tail, problems)
    return tail.lines


def setting(tree: dict[str, Any], key: str) -> Any:
    """A value of nested tables by dotted key; None if it is not there."""
    value: Any = tree
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """The object in a JSON file; empty if it is missing, or, with a problem, if it cannot be read."""
    data = _read(path, problems)
    if not data:
        return {}
    try:
        value = parse_json(data, allow_nan=True)
    except ValueError as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} cannot be read: it is not a JSON object")
        return {}
    return value


def _last(lines: list[dict[str, Any]], is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The last line that is wanted; an empty one if there is none."""
    return next((line for line in reversed(lines) if is_wanted(line)), {})


def _judge(is_open: bool | None, last: dict[str, Any], *, has_trained: bool) -> State:
    if is_open:
        return "training" if last else "starting"
    if not last:
        return "unknown" if has_trained else "new"
    state = _ENDS.get(last["event"])
    if state == "failed" and last.get("exit_code") == GuardError.exit_code:
        return "guard"
    # Without locks nobody can tell whether a process is still there.
    return state or ("killed" if is_open is False else "unknown")


def _read_metrics(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    found: list[str] = []
    lines = read_tail(path, found, _TAIL_BYTES)
    if lines and not any("val_loss" in line for line in lines):
        found = []
        lines = read_tail(path, found, _LONG_TAIL_BYTES)
    problems += found
    return lines


def _tail(path: Path, most_bytes: int) -> Tail:
    if not os.path.lexists(path):
        return Tail()
    if not is_regular(path):
        raise OSError("it is not a plain file")
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - most_bytes)
        file.seek(start)
        # Nothing after the last line end: it may still be written.
        lines = file.read(most_bytes).split(b"\n")[:-1]
    tail = Tail(is_whole=start == 0)
    for line in lines[0 if start == 0 else 1 :]:
        try:
            record = parse_json(line, allow_nan=True) if line.strip() else None
        except ValueError:
            record = None
        if isinstance(record, dict):
            tail.lines.append(record)
        else:
            tail.num_broken += bool(line.strip())
    return tail


def _note_broken(path: Path, tail: Tail, problems: list[str]) -> None:
    if tail.num_broken:
        where = "" if tail.is_whole else " near its end"
        lines = f"{tail.num_broken} line{'s' * (tail.num_broken > 1)}"
        problems.append(f"{path.name} has {lines}{where} that packtrain did not write; they are left out")


def _planned_steps(
    layout: RunLayout, tree: dict[str, Any], events: list[dict[str, Any]], problems: list[str]
) -> int | None:
    steps, tokens = setting(tree, "train.steps"), setting(tree, "train.tokens")
    batch = setting(tree, "train.global_batch_tokens") or TrainConfig.model_fields["global_batch_tokens"].default
    if is_count(steps):
        return int(steps)
    if is_count(tokens) and is_count(batch) and batch:
        return int(tokens) // int(batch)
    # Epochs: only the dataset knew how long they are. The length at the last start counts.
    started = _last(events, lambda line: line.get("event") in ("started", "resumed") and is_count(line.get("steps")))
    epoch: Any = started.get("steps") or read_object(layout.manifest, problems).get("steps")
    return int(epoch) if is_count(epoch) else None


def _last_step(*lines: dict[str, Any]) -> int | None:
    """The last step that is done. After a rollback, the one that the run went back to counts."""
    steps: list[Any] = [line.get("to_step" if line.get("event") == "rolled_back" else "step") for line in lines]
    return max((int(step) for step in steps if is_count(step)), default=None)


def _last_written(layout: RunLayout) -> float | None:
    times = []
    for path in (layout.metrics, layout.events, layout.config):
        try:
            times.append(path.stat().st_mtime)
        except (OSError, ValueError):
            continue
    return max(times, default=None)


def _read(path: Path, problems: list[str], *, is_needed: bool = False) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise OSError("it is far larger than packtrain writes it")
        return read_regular(path)
    except FileNotFoundError:
        if is_needed:
            problems.append(f"{path.name} is missing")
    except OSError as error:
        problems.append(f"{path.name}: {describe_os_error(error)}")
    return b""


def _number(value: Any) -> float | None:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 else None
    )
