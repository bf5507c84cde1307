"""Decides how metrics and events are stored: one JSON object a line, appended, and rewritten only to go back to a checkpoint."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from packtrain.errors import RunError
from packtrain.storage.atomic import write_atomically


class JsonLines:
    """Appends objects to a JSON-lines file. Opening it removes an incomplete last line, which a crash leaves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _cut_incomplete_line(path)
        self._handle = path.open("a", encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line and flushes it to the operating system. Writes null for numbers that are not finite (JSON has none)."""
        self._handle.write(json.dumps({k: _to_json(v) for k, v in record.items()}, allow_nan=False) + "\n")
        self._handle.flush()

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        os.fsync(self._handle.fileno())

    def close(self) -> None:
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Events(JsonLines):
    """What happens in a run besides its steps: started, resumed, skipped, saved, stopped."""

    def record(self, event: str, **details: Any) -> None:
        self.append({"time": time.time(), "event": event, **details})


def read_jsonl(path: Path, is_ours: Callable[[dict[str, Any]], bool] = bool) -> list[dict[str, Any]]:
    """Each whole line of a JSON-lines file; none if the file is missing. An incomplete last line is left out.

    Raises RunError for any other line that is not a JSON object, or that `is_ours` rejects.
    """
    if not path.is_file():
        return []
    lines = enumerate(path.read_bytes().split(b"\n")[:-1], start=1)
    return [_parse(line, f"{path}:{number}", is_ours) for number, line in lines if line.strip()]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl: training lines have `loss`, evaluation lines have `val_loss`, all have `step`."""
    return read_jsonl(path, lambda line: type(line.get("step")) is int)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of events.jsonl, each with `event` and the fields that a resumed run needs of its kind."""
    return read_jsonl(path, _is_event)


def rewind_metrics(path: Path, step: int) -> None:
    """Removes the lines after `step`: a resumed run writes them again and ends with the same file as an uninterrupted one."""
    records = read_metrics(path)
    kept = [record for record in records if record["step"] <= step]
    if len(kept) < len(records):
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


# Fields by kind of event, as train/rollback.py and train/run.py read them.
_NEEDED: dict[str, dict[str, type]] = {
    "started": {"dataset_hash": str},
    "resumed": {"step": int, "dataset_hash": str},
    "saved": {"step": int},
    "skipped": {"step": int, "reason": str},
    "rolled_back": {"step": int, "to_step": int, "num_rollbacks": int, "loader": dict},
    "annealing": {"loader": dict},
}


def _is_event(line: dict[str, Any]) -> bool:
    needed = _NEEDED.get(str(line.get("event")), {})
    return isinstance(line.get("event"), str) and all(isinstance(line.get(key), kind) for key, kind in needed.items())


def _parse(line: bytes, where: str, is_ours: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not is_ours(record):
        raise RunError(f"{where} is not a line that packtrain wrote; remove it from the file")
    return record


def _cut_incomplete_line(path: Path) -> None:
    if not path.is_file():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _to_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
