"""Decides what is said of a setting that does not exist, and of a value that does not fit."""

import difflib
import json
from collections.abc import Collection, Sequence
from typing import Any

from pydantic_core import ErrorDetails

_TYPE_NAMES = {"int", "float", "str", "bool", "constrained-int", "constrained-float"}


def explain(errors: Sequence[ErrorDetails], known: Collection[str], origins: dict[str, str], source: str) -> str:
    """One sentence on the first of pydantic's errors. `known`: every key; `origins`: where values came from, else `source`."""
    error = errors[0]
    key, place = _key_of(error), next(iter(reversed(error["loc"])), None)
    source = _origin_of(key, origins, source)
    if error["type"] == "extra_forbidden":
        return unknown_key(key, known, source)
    if error["type"] == "missing" and isinstance(place, int):
        return f"{key}={shown(error['input'])} (from {source}) does not fit: value {place + 1} is missing"
    if error["type"] == "missing":
        return f"{source} has no {key}; write {key}=..."
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    # A union gives one error for each of its members.
    same = [each for each in errors if _key_of(each) == key]
    first, *others = dict.fromkeys(each["msg"].replace("tuple", "list") for each in same)
    wanted = ", or ".join([first[:1].lower() + first[1:], *(msg.removeprefix("Input should be ") for msg in others)])
    return f"{key}={shown(error['input'])} (from {source}) does not fit: {wanted}"


def unknown_key(key: str, known: Collection[str], source: str) -> str:
    """What to say of a key that is not a setting: the nearest that there are."""
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    near = same_leaf or difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    near = near or [k for k in known if difflib.SequenceMatcher(None, k.rsplit(".", 1)[-1], leaf).ratio() > 0.75]
    hint = (
        f"did you mean {' or '.join(near[:2])}?"
        if near
        else f"the tables are {', '.join(k for k in known if '.' not in k)}"
    )
    return f"there is no setting '{key}' (from {source}); {hint}"


def shown(value: Any) -> str:
    """A value as an error shows it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _origin_of(key: str, origins: dict[str, str], source: str) -> str:
    """Where the value of `key` came from, if need be as part of a table."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, source)


def _key_of(error: ErrorDetails) -> str:
    # The location ends in a union's member, which the user never wrote, or in the number of a list's element.
    names = [part for part in error["loc"] if isinstance(part, str) and not ("[" in part or part in _TYPE_NAMES)]
    return ".".join(names)
