"""Decides how metrics and events are stored: one JSON object a line, appended, and rewritten only to go back to a checkpoint."""

import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import xxhash

from packtrain.errors import RunError
from packtrain.storage.atomic import write_atomically
from packtrain.storage.json_file import MOST_COUNT, parse_json
from packtrain.storage.regular import is_regular


class JsonLines:
    """Appends objects to a JSON-lines file. Opening it removes an incomplete last line, which a crash leaves.

    Several threads may append to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        # Reads the file once. From then on the hash costs as much as the new lines do.
        data = _cut_incomplete_line(path)
        self._lines, self._size_bytes, self._digest = data.count(b"\n"), len(data), xxhash.xxh3_128(data)
        self._handle = path.open("ab")

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line and flushes it to the operating system. Writes null for numbers that are not finite (JSON has none)."""
        line = (json.dumps({k: _to_json(v) for k, v in record.items()}, allow_nan=False) + "\n").encode()
        with self._lock:
            self._handle.write(line)
            self._handle.flush()
            self._digest.update(line)
            self._lines, self._size_bytes = self._lines + 1, self._size_bytes + len(line)

    def position(self) -> dict[str, Any]:
        """What a checkpoint notes of the file, as `runs.logs` reads it."""
        with self._lock:
            return {"lines": self._lines, "size_bytes": self._size_bytes, "hash": self._digest.hexdigest()}

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
    """What happens in a run besides its steps: started, resumed, skipped, saved, stopped. `on_event` gets each line too."""

    def __init__(self, path: Path, on_event: Callable[[dict[str, Any]], None] | None = None) -> None:
        super().__init__(path)
        self._on_event = on_event

    def record(self, event: str, **details: Any) -> None:
        line = {"time": time.time(), "event": event, **details}
        self.append(line)
        if self._on_event is not None:
            self._on_event(line)


def read_jsonl(path: Path, is_ours: Callable[[dict[str, Any]], bool] = bool) -> list[dict[str, Any]]:
    """Each whole line of a JSON-lines file; none if the file is missing. An incomplete last line is left out.

    Raises RunError for any other line that is not a JSON object, or that `is_ours` rejects.
    """
    lines = enumerate(_read_whole_lines(path), start=1)
    return [_parse(line, f"{path}:{number}", is_ours) for number, line in lines if line.strip()]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl: training lines have `loss`, evaluation lines have `val_loss`, all have `step`."""
    return read_jsonl(path, lambda line: is_count(line.get("step")))


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of events.jsonl, each with `event` and the fields that a resumed run needs of its kind."""
    return read_jsonl(path, _is_event)


def rewind_metrics(path: Path, step: int) -> None:
    """Removes the lines after `step`: a resumed run writes them again and ends with the same file as an uninterrupted one."""
    lines = _read_whole_lines(path)
    steps = [record["step"] for record in read_metrics(path)]
    written = [line for line in lines if line.strip()]
    kept = [line for line, at in zip(written, steps, strict=True) if at <= step]
    if len(kept) < len(written):
        write_atomically(path, b"".join(line + b"\n" for line in kept))


def is_count(value: Any) -> bool:
    """Whether a value from a file can be a step or a number of things."""
    return type(value) is int and 0 <= value < MOST_COUNT


# Fields by kind of event, as train/rollback.py and train/run.py read them.
_NEEDED: dict[str, dict[str, type]] = {
    "started": {"dataset_hash": str},
    "resumed": {"step": int, "dataset_hash": str},
    "saved": {"step": int},
    "skipped": {"step": int, "reason": str},
    "rolled_back": {"step": int, "to_step": int, "num_rollbacks": int, "loader": dict},
    "annealing": {"loader": dict},
    "continuing": {"loader": dict},
    "changed": {"step": int, "key": str},
}


def _is_event(line: dict[str, Any]) -> bool:
    kind = line.get("event")
    if not isinstance(kind, str) or ("step" in line and not is_count(line["step"])):
        return False
    needed = _NEEDED.get(kind, {})
    return all(
        is_count(line.get(key)) if kind is int else isinstance(line.get(key), kind) for key, kind in needed.items()
    )


def _parse(line: bytes, where: str, is_ours: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not is_ours(record):
        raise RunError(f"{where} is not a line that packtrain wrote; remove it from the file")
    return record


def _read_whole_lines(path: Path) -> list[bytes]:
    """The lines of a file without their ends; none if it is missing. An incomplete last one is left out."""
    if path.is_dir():
        raise RunError(f"{path} cannot be read (Is a directory); move it elsewhere")
    if path.exists() and not is_regular(path):
        raise RunError(f"{path} is not a plain file; move it elsewhere")
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _cut_incomplete_line(path: Path) -> bytes:
    """Cuts an incomplete last line off a file. Returns what is left; nothing of a missing file."""
    lines = _read_whole_lines(path)
    whole = b"".join(line + b"\n" for line in lines)
    if path.exists() and path.stat().st_size > len(whole):
        os.truncate(path, len(whole))
    return whole


def _to_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
