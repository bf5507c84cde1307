"""Decides which presets and recipes the package ships, the TOML files beside this module, and what is said of each."""

import re
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["presets", "recipes"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def shipped(kind: Kind) -> dict[str, str]:
    """The text of each preset or recipe in the package, by name."""
    return {file.stem: file.read_text() for file in sorted((Path(__file__).parent / kind).glob("*.toml"))}


def describe_shipped(kind: Kind) -> dict[str, str]:
    """One line on each preset or recipe, by name: the beginning of the comment at the top of its file."""
    # A preset's source and command are for those who open the file.
    about = re.compile(r"# (?:[\d.,]+M? parameters: )?(.*?)(?:;| \(github| \(recipes|: packtrain|\.?$)", re.MULTILINE)
    found = {name: about.match(text) for name, text in shipped(kind).items()}
    return {name: line[1] if line else "" for name, line in found.items()}
