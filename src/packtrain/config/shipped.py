"""Decides which presets and recipes the package ships: the TOML files beside this module."""

from importlib import resources
from typing import Literal

Kind = Literal["presets", "recipes"]


def shipped(kind: Kind) -> dict[str, str]:
    """The text of each preset or recipe in the package, by name."""
    folder = resources.files("packtrain.config") / kind
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text() for f in files}
