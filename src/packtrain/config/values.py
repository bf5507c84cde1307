"""Decides how the word after `KEY=` is read as a value, and which ways to write a number are understood."""

import json
import re
import tomllib
import types
import typing
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

_MOST_DEPTH = 32
_NUMBER = re.compile(r"([+-]?\d[\d_]{0,30}(?:\.\d[\d_]{0,30})?)(?:[eE]([+-]?\d{1,2}))?([kKMBT]?)", re.ASCII)
_POWERS = {"": 0, "k": 3, "K": 3, "M": 6, "B": 9, "T": 12}


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML document. Raises ValueError if it is not one, RecursionError if its values are nested deeper than any setting's."""
    return _bounded(tomllib.loads(text))


def parse_value(raw: str, annotation: Any) -> Any:
    """The value that a word of the command line means for a setting of this type; what it cannot mean is left as it is."""
    kinds = leaf_types(annotation)
    if raw in ("", "unset") and type(None) in kinds:
        return None
    is_text = str in kinds and not kinds & {int, float, bool}
    if is_text and not kinds & {dict, tuple}:
        return raw
    number = read_number(raw, annotation)
    if not isinstance(number, str):
        return number
    try:
        value = parse_toml(f"value = {raw}")["value"]
    except (ValueError, RecursionError):
        value = _parse_json(raw)
    if is_text and not isinstance(value, dict | list):
        return raw
    # Pydantic would read true as the number 1.
    return raw if isinstance(value, bool) and bool not in kinds else value


def read_number(text: str, annotation: Any) -> int | float | str:
    """A number such as `50M`, `1.5B`, `10k`, `1e6` or `524_288`, exactly, for a setting that takes one; other text unchanged.

    k, M, B and T are 10^3, 10^6, 10^9 and 10^12. If the setting takes only integers, a number that is not one is unchanged.
    """
    kinds = leaf_types(annotation)
    found = _NUMBER.fullmatch(text.strip())
    if not kinds & {int, float} or found is None:
        return text
    digits, exponent, unit = found.groups()
    value = Decimal(f"{digits.replace('_', '')}e{int(exponent or 0) + _POWERS[unit]}")
    if float in kinds:
        return float(value)
    return int(value) if value == value.to_integral_value() else text


def leaf_types(annotation: Any) -> set[Any]:
    """The types that a setting can have, those of its choices for a Literal, list and table types without their contents."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(leaf_types(a) for a in typing.get_args(annotation)))
    if origin is typing.Annotated:
        return leaf_types(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return {type(a) for a in typing.get_args(annotation)}
    return {origin or annotation}


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The class of a table of settings; None for a setting."""
    return next((t for t in leaf_types(annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)


def _parse_json(raw: str) -> Any:
    """A table or list written as JSON, which more people know than TOML's inline tables; any other word unchanged."""
    if raw[:1] not in ("{", "["):
        return raw
    try:
        return _bounded(json.loads(raw))
    except (ValueError, RecursionError):
        return raw


def _bounded(value: Any, depth: int = 0) -> Any:
    """The value itself. Raises RecursionError for tables and lists in each other deeper than any setting has them."""
    if depth > _MOST_DEPTH:
        raise RecursionError
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _bounded(inner, depth + 1)
    return value
