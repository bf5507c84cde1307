"""Decides which characters of a text are shown by their escapes: those that would control a terminal or the order of the text."""

import re

# Control characters but line break and tab, marks of direction, separators of lines, and lone surrogates.
_HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text in which no character of a document or file name can control the terminal, or make it look like another text."""
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)
