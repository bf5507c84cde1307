"""Decides where the measured rates of products are kept, and for which CPU, libraries and threads they hold."""

import json
import math
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from packtrain.model.cpu.name import describe_cpu
from packtrain.model.cpu.timing import Rates
from packtrain.storage.atomic import hash_bytes, write_atomically
from packtrain.storage.json_file import parse_json, read_bounded, seal, unseal

# Of the file and of how rates are measured: others measure again.
_VERSION = 1
# They choose the instructions that the libraries use.
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ATEN_CPU_CAPABILITY")


def describe_conditions(dtype: str, num_threads: int) -> dict[str, Any]:
    """Everything that a product's rate depends on, but for its size."""
    return {
        "version": _VERSION,
        "cpu": describe_cpu(),
        "torch": metadata.version("torch"),
        "dtype": dtype,
        "threads": num_threads,
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def read_rates(conditions: dict[str, Any]) -> dict[str, Rates]:
    """The kept rates by the name of the product; none if the file is missing, or not one that `keep_rates` wrote."""
    place = find_place(conditions)
    try:
        if place is None or not place.is_file():
            return {}
        content = unseal(parse_json(read_bounded(place)))
        if content["conditions"] != conditions:
            return {}
        found = {str(name): Rates(*map(float, pair)) for name, pair in content["rates"].items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: rates for name, rates in found.items() if all(0 < rate < math.inf for rate in rates)}


def keep_rates(conditions: dict[str, Any], rates: dict[str, Rates]) -> dict[str, Rates]:
    """Keeps `rates` beside those that are kept, the higher one of each; returns all of them.

    A folder that cannot be written only means that the next run measures again.
    """
    together = read_rates(conditions)
    for name, measured in rates.items():
        together[name] = Rates(*map(max, zip(measured, together.get(name, measured), strict=True)))
    place = find_place(conditions)
    if place is None:
        return together
    content = {"conditions": conditions, "rates": together}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, (json.dumps(seal(content)) + "\n").encode())
    except OSError:
        pass
    return together


def find_place(conditions: dict[str, Any]) -> Path | None:
    """The file of these conditions in the user's cache folder; None if the user has none."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(given) if given else Path.home() / ".cache"
    except RuntimeError:
        # A container's user without a name has no home.
        return None
    return folder / "packtrain" / "products" / f"{hash_bytes(json.dumps(conditions, sort_keys=True).encode())}.json"
