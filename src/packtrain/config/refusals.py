"""Decides what is said of a setting that does not exist, and of a value that does not fit."""

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from packtrain.config.foreign_names import find_meaning
from packtrain.config.shipped import Kind

_TYPE_NAMES = {"int", "float", "str", "bool", "constrained-int", "constrained-float"}


def explain(
    errors: Sequence[ErrorDetails],
    known: Collection[str],
    everywhere: Mapping[str, Kind],
    origins: Mapping[str, str],
    source: str,
) -> str:
    """One sentence on the first of pydantic's errors.

    `known`: the keys that can be set; `everywhere`: those of presets and recipes; `origins`: where values came from, else `source`.
    """
    error = errors[0]
    key, place = _key_of(error), next(iter(reversed(error["loc"])), None)
    source = _origin_of(key, origins, source)
    if error["type"] == "extra_forbidden":
        return unknown_key(key, known, everywhere, source)
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
    example = "; write a number such as 1500, 10k or 1.5B" if error["type"] in ("int_parsing", "float_parsing") else ""
    return f"{key}={shown(error['input'])} (from {source}) does not fit: {wanted}{example}"


def unknown_key(key: str, known: Collection[str], everywhere: Mapping[str, Kind], source: str) -> str:
    """What to say of a key that is not a setting: what another program means by it, or the nearest that there are."""
    unknown = f"there is no setting '{key}' (from {source})"
    if key in everywhere:
        return f"{unknown}; {_belongs(key, everywhere)}"
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    if not same_leaf and (meaning := find_meaning(key)) is not None:
        settings, remark = meaning
        here = [setting for setting in settings if setting in known]
        if settings and not here:
            return f"{unknown}; {_belongs(settings[0], everywhere)}"
        told = [f"did you mean {' or '.join(here)}?" if here else "", remark]
        return f"{unknown}; {' '.join(filter(None, told))}"
    near = same_leaf or difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    near = near or [k for k in known if difflib.SequenceMatcher(None, k.rsplit(".", 1)[-1], leaf).ratio() > 0.75]
    hint = (
        f"did you mean {' or '.join(near[:2])}?"
        if near
        else f"the tables are {', '.join(k for k in known if '.' not in k)}"
    )
    return f"{unknown}; {hint}"


def shown(value: Any) -> str:
    """A value as an error shows it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _belongs(key: str, everywhere: Mapping[str, Kind]) -> str:
    verb = "packtrain train" if everywhere[key] == "presets" else "packtrain prepare"
    return f"{key} is a setting of {everywhere[key]}; give it to `{verb}`"


def _origin_of(key: str, origins: Mapping[str, str], source: str) -> str:
    """Where the value of `key` came from, if need be as part of a table."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, source)


def _key_of(error: ErrorDetails) -> str:
    # The location ends in a union's member, which the user never wrote, or in the number of a list's element.
    names = [part for part in error["loc"] if isinstance(part, str) and not ("[" in part or part in _TYPE_NAMES)]
    return ".".join(names)
