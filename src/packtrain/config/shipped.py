"""Decides which presets and recipes the package ships: the TOML files beside this module."""

from pathlib import Path
from typing import Literal

Kind = Literal["presets", "recipes"]


def shipped(kind: Kind) -> dict[str, str]:
    """The text of each preset or recipe in the package, by name."""
    return {file.stem: file.read_text() for file in sorted((Path(__file__).parent / kind).glob("*.toml"))}
