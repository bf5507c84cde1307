"""Decides how files are damaged: byte by byte, as a whole, or as JSON and TOML that is valid and means nonsense."""

import copy
import json
import os
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

NONSENSE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**70, -(2**63), 0.5, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "0", "-1", "../x", "/etc/passwd", "a/b", "\x1b[31m", "\u202e", "\ud800", "\x00", "é" * 300, "nan"),
    *([], {}, [None], [[]], [0], {"a": 1}, {"": None}, {"x": {"y": []}}),
)


def pick_nonsense(draw: random.Random) -> Any:
    """A copy of one of NONSENSE, so that a tree never holds the same list or table twice."""
    return copy.deepcopy(draw.choice(NONSENSE))


def flip_bit(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    _replace(path, bytes(data))


def zero_block(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = draw.randrange(len(data) + 1)
    stop = min(len(data), start + draw.choice([1, 16, 512, 4096]))
    data[start:stop] = bytes(stop - start)
    _replace(path, bytes(data))


def cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    _replace(path, data[: draw.randrange(len(data) + 1)])


def lengthen(path: Path, draw: random.Random) -> None:
    _replace(path, path.read_bytes() + draw.choice([b"\0", b"\n", b"{}\n", draw.randbytes(64)]))


def empty(path: Path, draw: random.Random) -> None:  # noqa: ARG001  every damage gets its draw
    _replace(path, b"")


def fill_with_noise(path: Path, draw: random.Random) -> None:
    _replace(path, draw.randbytes(path.stat().st_size))


def delete(path: Path, draw: random.Random) -> None:  # noqa: ARG001
    path.unlink()


def exchange(path: Path, draw: random.Random) -> None:
    """Put another file of the same kind, or else of any kind, in its place."""
    others = [p for p in path.parent.rglob("*") if p.is_file() and p != path]
    alike = [p for p in others if p.suffix == path.suffix] or others
    _replace(path, draw.choice(alike).read_bytes() if alike else b"")


def link_away(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to(draw.choice(["/etc/passwd", "/dev/zero", path.name, "nowhere"]))


def make_fifo(path: Path, draw: random.Random) -> None:  # noqa: ARG001
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path, draw: random.Random) -> None:  # noqa: ARG001
    path.unlink()
    path.mkdir()


def drop_line(path: Path, draw: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines:
        lines.pop(draw.randrange(len(lines)))
    _replace(path, b"".join(lines))


def change_digit(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    digits = [at for at, byte in enumerate(data) if byte in b"0123456789"]
    if digits:
        at = draw.choice(digits)
        data[at] = draw.choice([byte for byte in b"0123456789" if byte != data[at]])
    _replace(path, bytes(data))


def nest(path: Path, draw: random.Random) -> None:  # noqa: ARG001
    _replace(path, b"[" * 100_000)


def change_tree(path: Path, draw: random.Random) -> None:
    """Put nonsense in one place of a JSON or TOML file, or of one line of a jsonl file."""
    if path.suffix == ".toml":
        _write_toml(path, change_somewhere(tomllib.loads(path.read_text()), draw))
        return
    text = path.read_text("utf-8")
    if path.suffix == ".jsonl":
        lines = text.splitlines()
        if lines:
            at = draw.randrange(len(lines))
            lines[at] = json.dumps(change_somewhere(json.loads(lines[at]), draw))
        text = "\n".join(lines) + "\n"
    else:
        text = json.dumps(change_somewhere(json.loads(text), draw), indent=1)
    _replace(path, text.encode("utf-8", "surrogatepass"))


def change_somewhere(tree: Any, draw: random.Random) -> Any:
    """The tree with one value replaced, removed, or added."""
    places = list(_places(tree))
    if not places or draw.random() < 0.02:
        return pick_nonsense(draw)
    parent, key = draw.choice(places)
    action = draw.random()
    if action < 0.2:
        del parent[key]
    elif action < 0.3 and isinstance(parent, dict):
        parent["unknown"] = pick_nonsense(draw)
    elif action < 0.4 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = parent[key] + draw.choice([-1, 1, 1000, 0.5])
    else:
        parent[key] = pick_nonsense(draw)
    return tree


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    *(flip_bit, zero_block, cut, lengthen, empty, fill_with_noise, delete, exchange),
    *(link_away, make_fifo, make_folder, drop_line, change_digit, nest),
)


def _places(tree: Any) -> Any:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield tree, key
        yield from _places(value)


def _write_toml(path: Path, tree: Any) -> None:
    try:
        text = tomli_w.dumps(tree)
    except (TypeError, AttributeError, ValueError):
        # None has no TOML; what is written instead is no TOML either.
        text = "broken = \n"
    _replace(path, text.encode("utf-8", "surrogatepass"))


def _replace(path: Path, data: bytes) -> None:
    # The file may be a hard link to the sound one.
    path.unlink()
    path.write_bytes(data)
