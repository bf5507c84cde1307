"""Decides how settings are given in Python: as a dict, or as the words that one would type."""

import json
import os
from collections.abc import Mapping
from typing import Any

from packtrain.errors import ConfigError

Settings = str | Mapping[str, Any]
"""`"optim.lr=3e-4"`, or `{"optim.lr": 3e-4}` for one setting or several; None in a dict unsets a setting."""


def to_words(settings: tuple[Settings, ...]) -> list[str]:
    """Settings as `KEY=VALUE` words, in order. Raises ConfigError for what is neither a word nor a dict."""
    words: list[str] = []
    for given in settings:
        if isinstance(given, str):
            words.append(given)
        elif isinstance(given, Mapping):
            for key, value in given.items():
                # A table such as {"train": {"steps": 3}}: each of its values, so that the preset's others stay.
                inner = isinstance(value, Mapping) and "." not in str(key)
                named = {f"{key}.{name}": each for name, each in value.items()} if inner else {str(key): value}
                words += [f"{name}={_written(name, each)}" for name, each in named.items()]
        else:
            raise ConfigError(
                f"{given!r:.100} is not a setting; write 'optim.lr=3e-4', or a dict such as {{'optim.lr': 3e-4}}"
            )
    return words


def _written(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    # NumPy's numbers have this, and so do torch's scalars.
    value = value.item() if hasattr(value, "item") else value
    try:
        return json.dumps(value, default=_plain)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{key}={value!r:.100} does not fit: give a text, number, true or false, list or dict"
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError
