"""Decides how a log that may still be written to is read: each whole line once, and a line that is not ours only counted."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packtrain.report.lines import parse_lines
from packtrain.report.metrics_lines import MetricsLines, parse_metrics
from packtrain.storage.json_file import describe_os_error
from packtrain.storage.regular import is_regular

# What came before must still be there, or the file was replaced by another.
_REMEMBERED_BYTES = 256


@dataclass
class _Tail:
    """What was read of a file so far."""

    found: Any
    """What the parser made of the whole lines. More is added with `+`."""
    inode: int = 0
    offset: int = 0
    """Bytes up to and including the last whole line."""
    before: bytes = b""
    """The last bytes before `offset`."""
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

    def read(self, path: Path, missing: list[str]) -> list[dict[str, Any]]:
        """The objects of all lines so far, in a new list; what cannot be read is said in `missing`.

        A last line without its end is used if it is whole, and not reported if not: a run may be writing it.
        """
        found: list[dict[str, Any]] = self._read(path, missing, _parse_objects)
        return found

    def read_metrics(self, path: Path, missing: list[str]) -> MetricsLines:
        """As `read`, of a file whose lines need a step: training lines as columns, and validation lines."""
        found: MetricsLines = self._read(path, missing, parse_metrics)
        return found

    def _read(self, path: Path, missing: list[str], parse: Callable[[bytes], tuple[Any, int]]) -> Any:
        nothing, _ = parse(b"")
        if not path.exists():
            self._tails.pop(path, None)
            return nothing
        if not is_regular(path):
            missing.append(f"{path.name} cannot be read: it is not a plain file.")
            return nothing
        try:
            tail, rest = self._advance(path, parse, nothing)
        except OSError as error:
            missing.append(f"{path.name}: {describe_os_error(error)}.")
            return nothing
        if tail.num_broken:
            missing.append(f"Left out {tail.num_broken:,} unreadable line{'s' * (tail.num_broken > 1)} of {path.name}.")
        last, _ = parse(rest)
        return tail.found + last

    def once_per_start(self, folder: Path, check: Callable[[], list[str]]) -> list[str]:
        """What `check` finds in the logs of a folder. It reads them whole, so it is called again only after a restart."""
        checked_at, found = self._checked.get(folder, (-1, []))
        if checked_at != self.num_restarts:
            found = check()
            self._checked[folder] = (self.num_restarts, found)
        return found

    def _advance(self, path: Path, parse: Callable[[bytes], tuple[Any, int]], nothing: Any) -> tuple[_Tail, bytes]:
        """Reads what was appended, and gives the incomplete last line too."""
        with path.open("rb") as file:
            status = path.stat()
            tail = self._tails.get(path)
            if tail is not None and not _continues(file, tail, status.st_ino, status.st_size):
                self.num_restarts += 1
                tail = None
            if tail is None:
                tail = self._tails[path] = _Tail(nothing, inode=status.st_ino)
            file.seek(tail.offset)
            data = file.read()
        self.num_bytes_read += len(data)
        end = data.rfind(b"\n") + 1
        if end:
            found, num_broken = parse(data[:end])
            tail.found = tail.found + found
            tail.num_broken += num_broken
            tail.before = (tail.before + data[:end])[-_REMEMBERED_BYTES:]
            tail.offset += end
        return tail, data[end:]


def _continues(file: Any, tail: _Tail, inode: int, size: int) -> bool:
    if inode != tail.inode or size < tail.offset:
        return False
    file.seek(tail.offset - len(tail.before))
    return bool(file.read(len(tail.before)) == tail.before)


_parse_objects = functools.partial(parse_lines, step_needed=False)
