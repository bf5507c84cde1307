"""Decides which lines of a log are objects that a report can use: those that a JSON parser takes whole, and the others are counted."""

import gc
import json
from typing import Any

from packtrain.runs.metrics import is_count
from packtrain.storage.json_file import MOST_DEPTH, parse_json

# Lines that are parsed together: fast, and a broken one slows down only its neighbours.
_BLOCK = 2000


def parse_object(data: bytes) -> dict[str, Any] | None:
    """A JSON object that training, or another program, wrote; None if it is not one."""
    try:
        value = parse_json(data, allow_nan=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def parse_lines(data: bytes, *, step_needed: bool) -> tuple[list[dict[str, Any]], int]:
    """The objects of the lines that have a step (or, without `step_needed`, none at all), and how many others there are."""
    lines = [line for line in data.split(b"\n") if line.strip()]
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
