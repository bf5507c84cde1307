"""Decides how a log that may still be written to is read: each whole line once, and a line that is not ours only counted."""

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packtrain.runs.metrics import is_count
from packtrain.storage.json_file import MOST_DEPTH, describe_os_error, parse_json
from packtrain.storage.regular import is_regular

# Lines that are parsed together: fast, and a broken one slows down only its neighbours.
_BLOCK = 2000
# What came before must still be there, or the file was replaced by another.
_REMEMBERED_BYTES = 256


@dataclass
class _Tail:
    """What was read of a file so far."""

    inode: int = 0
    offset: int = 0
    """Bytes up to and including the last whole line."""
    before: bytes = b""
    """The last bytes before `offset`."""
    records: list[dict[str, Any]] = field(default_factory=list)
    num_broken: int = 0


class LogReader:
    """Reads JSON-lines files. Asked again for the same file, it reads only what was appended since.

    A file that was cut, replaced or rewritten is read from its beginning again; `num_restarts` counts that.
    """

    def __init__(self) -> None:
        self._tails: dict[Path, _Tail] = {}
        self._checked: dict[Path, tuple[int, list[str]]] = {}
        self.num_restarts = 0
        self.num_bytes_read = 0

    def read(self, path: Path, missing: list[str], *, step_needed: bool = True) -> list[dict[str, Any]]:
        """The objects of all lines so far, in a new list; what cannot be read is said in `missing`.

        A last line without its end is used if it is whole, and not reported if not: a run may be writing it.
        """
        if not path.exists():
            self._tails.pop(path, None)
            return []
        if not is_regular(path):
            missing.append(f"{path.name} cannot be read: it is not a plain file.")
            return []
        try:
            tail, rest = self._advance(path, step_needed)
        except OSError as error:
            missing.append(f"{path.name}: {describe_os_error(error)}.")
            return []
        if tail.num_broken:
            missing.append(f"Left out {tail.num_broken:,} unreadable line{'s' * (tail.num_broken > 1)} of {path.name}.")
        last, _ = _parse_lines([rest], step_needed)
        return tail.records + last

    def once_per_start(self, folder: Path, check: Callable[[], list[str]]) -> list[str]:
        """What `check` finds in the logs of a folder. It reads them whole, so it is called again only after a restart."""
        checked_at, found = self._checked.get(folder, (-1, []))
        if checked_at != self.num_restarts:
            found = check()
            self._checked[folder] = (self.num_restarts, found)
        return found

    def _advance(self, path: Path, step_needed: bool) -> tuple[_Tail, bytes]:
        """Reads what was appended, and gives the incomplete last line too."""
        with path.open("rb") as file:
            status = path.stat()
            tail = self._tails.get(path)
            if tail is not None and not _continues(file, tail, status.st_ino, status.st_size):
                self.num_restarts += 1
                tail = None
            if tail is None:
                tail = self._tails[path] = _Tail(inode=status.st_ino)
            file.seek(tail.offset)
            data = file.read()
        self.num_bytes_read += len(data)
        end = data.rfind(b"\n") + 1
        if end:
            found, num_broken = _parse_lines(data[:end].split(b"\n"), step_needed)
            tail.records += found
            tail.num_broken += num_broken
            tail.before = (tail.before + data[:end])[-_REMEMBERED_BYTES:]
            tail.offset += end
        return tail, data[end:]


def parse_object(data: bytes) -> dict[str, Any] | None:
    """A JSON object that training, or another program, wrote; None if it is not one."""
    try:
        value = parse_json(data, allow_nan=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _continues(file: Any, tail: _Tail, inode: int, size: int) -> bool:
    if inode != tail.inode or size < tail.offset:
        return False
    file.seek(tail.offset - len(tail.before))
    return bool(file.read(len(tail.before)) == tail.before)


def _parse_lines(lines: list[bytes], step_needed: bool) -> tuple[list[dict[str, Any]], int]:
    """The objects of the lines that have a step (or, without `step_needed`, none at all), and how many others there are."""
    lines = [line for line in lines if line.strip()]
    found: list[dict[str, Any]] = []
    # Hundreds of thousands of new objects would make the collector walk through all of them again and again.
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        for first in range(0, len(lines), _BLOCK):
            objects = _parse_block(lines[first : first + _BLOCK])
            found += [o for o in objects if is_count(o.get("step")) or not (step_needed or "step" in o)]
    finally:
        if was_collecting:
            gc.enable()
    return found, len(lines) - len(found)


def _parse_block(lines: list[bytes]) -> list[dict[str, Any]]:
    """The objects among the lines. All at once if each is one flat object, else each for itself."""
    text = b",".join(lines)
    if text.count(b"{") + text.count(b"[") <= len(lines) + MOST_DEPTH and b"\\u" not in text:
        try:
            values = json.loads(f"[{text.decode()}]")
        except (ValueError, RecursionError):
            values = []
        if len(values) == len(lines) and all(type(value) is dict for value in values):
            return list(values)
    return [value for value in map(parse_object, lines) if value is not None]
