"""Decides how text becomes HTML or SVG: text that is not already markup is escaped, so that no run can inject code."""

import html

from packtrain.data.tokens.visible import printable


class Markup(str):
    """Text that is already HTML or SVG and is written unchanged."""

    __slots__ = ()


Child = Markup | str | int | None


def el(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """One element. Attribute names lose a trailing `_`, other `_` become `-`; None and False leave an attribute out."""
    written = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        written.append(f" {name}" if value is True else f' {name}="{_escape(_plain(value))}"')
    inner = join(*children)
    if tag in _VOID:
        return Markup(f"<{tag}{''.join(written)}>")
    return Markup(f"<{tag}{''.join(written)}>{inner}</{tag}>")


def join(*children: Child, separator: str = "") -> Markup:
    """The children one after another, with text escaped."""
    return Markup(separator.join(c if isinstance(c, Markup) else _escape(str(c)) for c in children if c is not None))


def _escape(text: str) -> str:
    return html.escape(printable(text))


def _plain(value: str | float) -> str:
    # Two decimals place a point to a hundredth of a pixel; more only makes the file larger.
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
