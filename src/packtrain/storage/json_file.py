"""Decides how a JSON file that anybody may have damaged is read: bounded in size and depth, and whatever is wrong said in words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import xxhash

from packtrain.errors import PacktrainError
from packtrain.storage.regular import is_regular, read_regular

# No JSON file of ours comes near these. A file that is larger or deeper was not written by packtrain.
MOST_BYTES = 1 << 28
MOST_DEPTH = 64
MOST_COUNT = 1 << 53
"""Steps, tokens and the like stay below this, so that they are exact as floats too."""


def read_json(path: Path, refuse: Callable[[str], PacktrainError]) -> Any:
    """The value in a JSON file. If there is none, raises what `refuse` makes of the reason, a clause such as `it is missing`."""
    try:
        return parse_json(read_bounded(path))
    except OSError as error:
        raise refuse(describe_os_error(error)) from None
    except ValueError as error:
        raise refuse(str(error)) from None


def read_bounded(path: Path) -> bytes:
    """The bytes of a file that packtrain wrote. Raises OSError, or ValueError for a link or pipe or a size beyond MOST_BYTES."""
    if not is_regular(path):
        path.lstat()
        raise ValueError("it is not a plain file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MB")
    return read_regular(path)


def parse_json(data: bytes, *, allow_nan: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError, with the reason as a clause, for anything that packtrain does not write.

    `allow_nan`: other programs write NaN and Infinity, which JSON does not have.
    """
    try:
        value = (_LENIENT_DECODER if allow_nan else _DECODER).decode(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} in line {error.lineno}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if data.count(b"[") + data.count(b"{") > MOST_DEPTH:
        check_depth(value)
    if b"\\ud" in data or b"\\uD" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half a character (a lone surrogate)") from None
    return value


def check_depth(value: Any) -> None:
    """Raises ValueError for lists and tables in each other beyond MOST_DEPTH: whatever walks through them would fail."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def describe_os_error(error: OSError) -> str:
    """Why a file cannot be read, as a clause."""
    return "it is missing" if isinstance(error, FileNotFoundError) else f"it cannot be read: {error.strerror or error}"


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with a hash of itself, for a small file that no other file's hash covers."""
    return {"content": content, "hash": _hash(content)}


def unseal(value: Any) -> dict[str, Any]:
    """The content of what `seal` made. Raises ValueError if it is not as it was."""
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, dict) or value.get("hash") != _hash(content):
        raise ValueError("its hash differs from the saved one")
    return content


def _hash(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has the number {name}, which JSON does not have")


_LENIENT_DECODER = json.JSONDecoder()
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_TOO_DEEP = "its values are nested too deeply"
