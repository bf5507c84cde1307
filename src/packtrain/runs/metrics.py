"""Decides how metrics and events are kept: one JSON object a line, appended, never rewritten but to go back to a checkpoint."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Self

from packtrain.data.atomic import write_atomically
from packtrain.errors import RunError


class JsonLines:
    """Appends objects to a JSON-lines file. A torn last line, left by a crash, is cut off when the file is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _cut_torn_line(path)
        self._handle = path.open("a", encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line and hands it to the operating system. Non-finite numbers are written as null (JSON has none)."""
        self._handle.write(json.dumps({k: _json_number(v) for k, v in record.items()}, allow_nan=False) + "\n")
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
    """Whatever happens to a run beside its steps: started, resumed, skipped, saved, stopped."""

    def record(self, event: str, **details: Any) -> None:
        self.append({"time": time.time(), "event": event, **details})


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON-lines file; none where the file is missing. A torn last line is left out.

    Raises RunError that names any other line which is not a JSON object.
    """
    if not path.is_file():
        return []
    lines = enumerate(path.read_bytes().split(b"\n")[:-1], start=1)
    return [_parsed(line, f"{path}:{number}") for number, line in lines if line.strip()]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl: training lines have `loss`, evaluation lines have `val_loss`."""
    return read_jsonl(path)


def rewind_metrics(path: Path, step: int) -> None:
    """Takes out the lines after `step`, so that a resumed run writes them anew and ends with the file of an unbroken one."""
    records = read_jsonl(path)
    kept = [record for record in records if record["step"] <= step]
    if len(kept) < len(records):
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise RunError(f"{where} is not a line that packtrain wrote; take it out of the file")
    return record


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
