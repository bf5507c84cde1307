"""Decides whether metrics.jsonl, events.jsonl and manifest.json still hold what they held when a checkpoint was saved."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from packtrain.errors import RunError
from packtrain.runs.layout import LOGS, MADE_BY, RunLayout, write_json
from packtrain.runs.metrics import JsonLines
from packtrain.storage.json_file import read_json, seal, unseal
from packtrain.storage.regular import is_regular

_CHUNK = 1 << 22


@dataclass(frozen=True)
class LogPosition:
    """How much of a log there was at a save: its lines, their bytes, and the xxh3-128 of these, in hexadecimal."""

    lines: int
    size_bytes: int
    hash: str


@dataclass(frozen=True)
class LogGap:
    """A log that no longer begins with the lines that it had at step `step`."""

    file: str
    step: int
    reason: str
    """In words, to follow the file's name."""


def measure_logs(*logs: JsonLines | None) -> dict[str, dict[str, Any]]:
    """What a checkpoint notes of the logs that this process writes, by name."""
    return {log.path.name: log.position() for log in logs if log is not None}


def measure_manifest(layout: RunLayout) -> dict[str, dict[str, Any]]:
    """What a checkpoint notes of the run's manifest, by its name; nothing if it is gone."""
    if not is_regular(layout.manifest):
        return {}
    data = layout.manifest.read_bytes()
    position = LogPosition(data.count(b"\n"), len(data), xxhash.xxh3_128_hexdigest(data))
    return {layout.manifest.name: asdict(position)}


def note_end(layout: RunLayout, step: int, logs: Mapping[str, Any]) -> None:
    """Note in the checkpoint of a run's last step how the logs are at its end: lines were written since it was saved."""
    folder = layout.checkpoint(step)
    if (folder / LOGS).exists():
        write_json(folder / LOGS, seal({**logs, **measure_manifest(layout)}))


def find_gaps(layout: RunLayout, folder: Path, step: int) -> list[LogGap]:
    """The logs of a run that have lost or changed lines since its checkpoint of step `step`, in `folder`, was saved.

    Its manifest counts as a log. Reads each up to there once. Empty for a checkpoint of a version that did not record this.
    """
    logs = (layout.metrics, layout.events, layout.manifest)
    try:
        positions = _read_positions(folder)
    except (RunError, ValueError) as error:
        reason = f"cannot be compared with what it was at step {step} ({LOGS} of the checkpoint: {error})"
        return [LogGap(path.name, step, reason) for path in logs]
    found = []
    for path in logs:
        explained = _explain_gap(path, positions[path.name], step) if path.name in positions else None
        if explained is not None:
            found.append(LogGap(path.name, step, explained))
    return found


def _read_positions(folder: Path) -> dict[str, LogPosition]:
    path = folder / LOGS
    if not path.exists():
        # The configuration and this file came into checkpoints together.
        if (folder / MADE_BY).exists():
            raise RunError("it is missing")
        return {}
    content = unseal(read_json(path, RunError))
    return {name: _position(value) for name, value in content.items()}


def _position(value: Any) -> LogPosition:
    if not isinstance(value, dict):
        raise ValueError("it is damaged")
    lines, size, digest = (value.get(key) for key in ("lines", "size_bytes", "hash"))
    if not (type(lines) is int and type(size) is int and lines >= 0 and size >= 0 and isinstance(digest, str)):
        raise ValueError("it is damaged")
    return LogPosition(lines, size, digest)


def _explain_gap(path: Path, before: LogPosition, step: int) -> str | None:
    """What happened to a log, as words that follow its name; None if it still begins as it did."""
    had = f"it had {before.lines:,} line{'s' * (before.lines != 1)} at step {step}"
    if not is_regular(path):
        return f"is gone ({had})" if before.lines else None
    digest, lines, left = xxhash.xxh3_128(), 0, before.size_bytes
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            lines += chunk.count(b"\n")
            left -= len(chunk)
    if left:
        return f"has lost lines ({had}, and {lines:,} are left)" if lines else f"is empty ({had})"
    return None if digest.hexdigest() == before.hash else f"has other lines than it had ({had})"
