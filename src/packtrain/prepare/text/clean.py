"""Decides how a document's text is cleaned before any other step, and why a document is dropped."""

import re
import unicodedata
from collections.abc import Callable

from packtrain.config.recipe import CleanConfig
from packtrain.errors import ConfigError
from packtrain.prepare.text.filters import make_filters

EMPTY, TOO_SHORT, TOO_LONG = "empty", "too_short", "too_long"

CLEANING = 2
"""Raise this whenever the same settings clean a text differently, so that no earlier scan is used again."""

# Control characters of one byte in UTF-8, which no longer character contains; tab and line ends stay.
_CONTROL_BYTES = bytes(b for b in range(32) if b not in b"\t\n\r") + b"\x7f"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+")
# Vertical tab, form feed, file, group and record separator, next line: Unicode and Python end a line at each.
_LINE_BREAKS = dict.fromkeys(map(ord, "\x0b\x0c\x1c\x1d\x1e\x85"), "\n")


class Cleaner:
    """Cleans one document at a time. Raises ConfigError if a library is needed that is not installed."""

    def __init__(self, config: CleanConfig) -> None:
        self._config = config
        self._fix = _encoding_fixer() if config.fix_encoding else None
        self._filters = make_filters(config)

    def __call__(self, text: str) -> tuple[str, str | None]:
        """The text to keep, and the reason to drop it or None."""
        text, reason = self.light(text)
        for one in self._filters if reason is None else ():
            passed, reason = one(text)
            if reason is None and passed != text:
                passed, reason = self.light(passed)
            text = passed
            if reason is not None:
                break
        return text, reason

    def light(self, text: str) -> tuple[str, str | None]:
        """As a call, but without filters. Cleaning a clean text changes nothing."""
        config = self._config
        if self._fix is not None:
            text = self._fix(text)
        if config.line_ends and "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if config.control_characters:
            text = replace_control_characters(text)
        if config.normalize != "none" and not text.isascii():
            text = unicodedata.normalize(config.normalize, text)
        if config.whitespace:
            text = trim(text)
        return text, _reason(text, config)


def replace_control_characters(text: str) -> str:
    """The text without characters of category Cc other than tab, line feed and carriage return. No two words are joined.

    Those that end a line become line feeds. A run of others becomes a space, or nothing if whitespace or an end of the
    text is beside it.
    """
    if text.isascii():
        if len(text.encode().translate(None, _CONTROL_BYTES)) == len(text):
            return text
    elif not _CONTROL.search(text):
        return text
    return _CONTROL.sub(_separate, text.translate(_LINE_BREAKS))


def _separate(found: re.Match[str]) -> str:
    before, after = found.string[max(0, found.start() - 1) : found.start()], found.string[found.end() : found.end() + 1]
    return "" if not before or not after or before.isspace() or after.isspace() else " "


def trim(text: str) -> str:
    """The text without spaces at line ends, without space around it, and with at most two blank lines in a row."""
    text = text.strip()
    if "\n" not in text:
        return text
    # Line by line: a pattern for spaces before a line end takes quadratic time in a long run of spaces.
    if " \n" in text or "\t\n" in text:
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    while "\n\n\n\n" in text:
        text = text.replace("\n\n\n\n", "\n\n\n")
    return text


def _reason(text: str, config: CleanConfig) -> str | None:
    if not text or text.isspace():
        return EMPTY
    if len(text) < config.min_chars:
        return TOO_SHORT
    if config.max_chars is not None and len(text) > config.max_chars:
        return TOO_LONG
    return None


def _encoding_fixer() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError:
        raise ConfigError(
            "clean.fix_encoding=true needs ftfy, which is not installed; run pip install 'packtrain[ftfy]', or write "
            "clean.fix_encoding=false"
        ) from None
    fix: Callable[[str], str] = ftfy.fix_encoding
    return fix
