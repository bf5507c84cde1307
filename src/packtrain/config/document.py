"""Decides what docs/configuration.md says: tables made from the configuration classes. `make docs` writes it."""

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from packtrain.config.recipe import Recipe
from packtrain.config.run import RunConfig
from packtrain.config.shipped import shipped

_HEAD = """# Configuration

`make docs` writes this page from the classes in `src/packtrain/config/`; a test keeps it up to date.

A value comes from the last of these that sets it: the default below, the preset or recipe, `KEY=VALUE` on the command line.
An empty value (`KEY=`) unsets a key whose default is *unset*. `packtrain config PRESET [KEY=VALUE]...` shows every value and where
it came from.

A preset or recipe of your own is a TOML file with the values that differ. `base = "demo"` on its first line builds it on a
shipped preset or recipe, or on another file (`base = "other.toml"`, relative to the file itself), instead of on the defaults.
"""


def configuration_markdown() -> str:
    """The page docs/configuration.md."""
    lines = [_HEAD]
    for title, cls, kind in (("Presets", RunConfig, "presets"), ("Recipes", Recipe, "recipes")):
        names = ", ".join(f"`{name}`" for name in shipped(kind))  # type: ignore[arg-type]
        lines += [f"## {title}", "", f"Shipped: {names}.", ""]
        for table, section in _sections(cls):
            lines += [
                f"### {table}",
                "",
                _text(section.__doc__),
                "",
                "| key | type | default | meaning |",
                "| --- | --- | --- | --- |",
            ]
            lines += [_row(f"{table}.{name}", field) for name, field in section.model_fields.items()]
            lines.append("")
    return "\n".join(lines)


def _sections(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in cls.model_fields.items():
        inner = next((t for t in _members(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)
        if inner is not None:
            yield prefix + name, inner
            yield from _sections(inner, f"{prefix}{name}.")


def _row(key: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else "unset" if field.default is None else f"`{_value(field.default)}`"
    return f"| `{key}` | {_type(field.annotation)} | {default} | {_text(field.description)} |"


def _type(annotation: Any) -> str:
    shown = []
    for member in _members(annotation):
        if member is type(None):
            continue
        origin = typing.get_origin(member)
        if origin is typing.Literal:
            shown += [f"`{choice}`" for choice in typing.get_args(member)]
        elif origin is tuple:
            inner = typing.get_args(member)[0]
            is_table = isinstance(inner, type) and issubclass(inner, BaseModel)
            shown.append("table" if is_table else "list")
        elif isinstance(member, type) and issubclass(member, BaseModel):
            shown.append("table")
        else:
            shown.append({"str": "text", "int": "integer", "float": "number", "bool": "true/false"}[member.__name__])
    return ", ".join(shown)


def _members(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    return [annotation]


def _value(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return str(list(default) if isinstance(default, tuple) else default)


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(configuration_markdown(), end="")
