"""Decides how a configuration is read: defaults, then a preset or file, then KEY=VALUE; remembers where each value came from."""

import difflib
import json
import os
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from packtrain.config.base import Section
from packtrain.config.recipe import Recipe
from packtrain.config.run import RunConfig
from packtrain.config.shipped import Kind, shipped
from packtrain.errors import ConfigError

_MOST_DEPTH = 32
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """A configuration, and where each value that is not a default came from, by dotted key."""

    config: S
    origins: dict[str, str]


def load_run_config(target: str, overrides: Sequence[str] = ()) -> Resolved[RunConfig]:
    """The configuration of a run, from a preset or a TOML file, changed by `KEY=VALUE` words.

    Raises ConfigError for an unknown preset or key, a value that does not fit, or a file that is not TOML.
    """
    return _load(RunConfig, "presets", target, overrides)


def load_recipe(target: str, overrides: Sequence[str] = ()) -> Resolved[Recipe]:
    """The recipe of a dataset, from a shipped recipe or a TOML file, changed by `KEY=VALUE` words.

    Raises ConfigError for an unknown recipe or key, a value that does not fit, or a file that is not TOML.
    """
    return _load(Recipe, "recipes", target, overrides)


def to_toml(config: Section) -> str:
    """The whole configuration as TOML; reading it back gives an equal one. Unset values are left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def from_toml(cls: type[S], text: str, source: str) -> S:
    """A configuration from TOML that `to_toml` wrote. `source` names it in errors."""
    return _validate(cls, _parse_toml(text, source), source)


def dotted_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that can be set, with its type annotation, in the order of the classes."""
    for name, field in cls.model_fields.items():
        inner = _section_of(field.annotation)
        yield prefix + name, field.annotation
        if inner is not None:
            yield from dotted_keys(inner, f"{prefix}{name}.")


def flatten(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a configuration by dotted key."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _load(cls: type[S], kind: Kind, target: str, overrides: Sequence[str]) -> Resolved[S]:
    layers = _read_layers(kind, target)
    annotations = dict(dotted_keys(cls))
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer, source in layers:
        _overlay(tree, layer, annotations)
        origins |= dict.fromkeys(_leaves(layer, annotations), source)
    for word in overrides:
        # As Python reads bytes of the command line that are not UTF-8.
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise ConfigError(f"{word!a} has bytes that are not UTF-8; rename what it names, and write that")
        key, equals, raw = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{word}' is not a setting; write KEY=VALUE, for example {_example(kind)}")
        if key not in annotations:
            raise ConfigError(_unknown_key(key, annotations, "the command line"))
        _set(tree, key, _parse_value(raw, annotations[key]))
        origins[key] = "the command line"
    return Resolved(_validate(cls, tree, source, origins), origins)


def _read_layers(kind: Kind, target: str) -> list[tuple[dict[str, Any], str]]:
    """The tables of a preset or file with their name, last; before it those of its `base`, of that one's base, and so on."""
    layers: list[tuple[dict[str, Any], str]] = []
    while target or not layers:
        text, source = _read_target(kind, target)
        if source in (known for _, known in layers):
            raise ConfigError(f"{source} is its own base, through base in {layers[0][1]}; name another base there")
        tree = _parse_toml(text, source)
        base = tree.pop("base", "")
        if not isinstance(base, str):
            raise ConfigError(
                f"base={_shown(base)} (from {source}) does not fit: write the name of a {_noun(kind)}, or a TOML file's path"
            )
        layers.insert(0, (tree, source))
        # A path is relative to the file that names it.
        target = str(Path(target).parent / base) if base.endswith(".toml") else base
    return layers


def _overlay(under: dict[str, Any], over: dict[str, Any], annotations: dict[str, Any], prefix: str = "") -> None:
    """Puts the values of `over` into `under`, key by key. A table that is not a section, such as a mixture, replaces the other."""
    for name, value in over.items():
        below = under.get(name)
        if isinstance(value, dict) and isinstance(below, dict) and _section_of(annotations.get(prefix + name)):
            _overlay(below, value, annotations, f"{prefix}{name}.")
        else:
            under[name] = value


def _read_target(kind: Kind, target: str) -> tuple[str, str]:
    known = shipped(kind)
    noun = _noun(kind)
    if target in known:
        return known[target], f"{noun} {target}"
    path = Path(target)
    if path.suffix == ".toml" or os.path.isfile(target):  # noqa: PTH113  False too for what cannot be a path
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except FileNotFoundError:
            raise ConfigError(
                f"the file {target} does not exist; write the path of a TOML file or one of {', '.join(known)}"
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"the file {target[:200]} cannot be read ({error}); it must be TOML in UTF-8") from None
    near = difflib.get_close_matches(target, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"there is no {noun} '{target[:200]}'; {hint}write the path of a TOML file or one of {', '.join(known)}"
    )


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return _bounded(tomllib.loads(text))
    except RecursionError:
        raise ConfigError(
            f"{source} is not valid TOML (its values are nested too deeply); write flatter ones"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{source} is not valid TOML ({error}); fix that line") from None


def _parse_value(raw: str, annotation: Any) -> Any:
    kinds = _leaf_types(annotation)
    if raw == "" and type(None) in kinds:
        return None
    is_text = str in kinds and not kinds & {int, float, bool}
    if is_text and not kinds & {dict, tuple}:
        return raw
    try:
        value = _bounded(tomllib.loads(f"value = {raw}"))["value"]
    except (ValueError, RecursionError):
        value = _parse_json(raw)
    if is_text and not isinstance(value, dict | list):
        return raw
    # Pydantic would read true as the number 1.
    return raw if isinstance(value, bool) and bool not in kinds else value


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


def _leaf_types(annotation: Any) -> set[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_leaf_types(a) for a in typing.get_args(annotation)))
    if origin is typing.Annotated:
        return _leaf_types(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return {type(a) for a in typing.get_args(annotation)}
    return {origin or annotation}


def _section_of(annotation: Any) -> type[BaseModel] | None:
    return next((t for t in _leaf_types(annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, leaf = key.split(".")
    for name in path:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key} cannot be set, because {name} in the file is not a table; write [{name}] there")
    tree[leaf] = value


def _leaves(tree: dict[str, Any], annotations: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of the values in a tree. A table that is not a section is one value."""
    for name, value in tree.items():
        if isinstance(value, dict) and _section_of(annotations.get(prefix + name)):
            yield from _leaves(value, annotations, f"{prefix}{name}.")
        else:
            yield prefix + name


def _validate(cls: type[S], tree: dict[str, Any], source: str, origins: dict[str, str] | None = None) -> S:
    try:
        return cls.model_validate(tree)
    except ValidationError as failure:
        errors = failure.errors()
        key = _key_of(errors[0])
        # A union gives one error for each of its members.
        same = [error for error in errors if _key_of(error) == key]
        raise ConfigError(_explain(cls, same, _origin_of(key, origins or {}, source))) from None


def _origin_of(key: str, origins: dict[str, str], source: str) -> str:
    """Where the value of `key` came from, if need be as part of a table."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, source)


def _key_of(error: ErrorDetails) -> str:
    # The location ends in a union's member, which the user never wrote, or in the number of a list's element.
    names = [part for part in error["loc"] if isinstance(part, str) and not ("[" in part or part in _TYPE_NAMES)]
    return ".".join(names)


_TYPE_NAMES = {"int", "float", "str", "bool", "constrained-int", "constrained-float"}


def _explain(cls: type[Section], errors: Sequence[ErrorDetails], source: str) -> str:
    error = errors[0]
    key, place = _key_of(error), next(iter(reversed(error["loc"])), None)
    if error["type"] == "extra_forbidden":
        return _unknown_key(key, dict(dotted_keys(cls)), source)
    if error["type"] == "missing" and isinstance(place, int):
        return f"{key}={_shown(error['input'])} (from {source}) does not fit: value {place + 1} is missing"
    if error["type"] == "missing":
        return f"{source} has no {key}; write {key}=..."
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    first, *others = dict.fromkeys(error["msg"].replace("tuple", "list") for error in errors)
    wanted = ", or ".join([first[:1].lower() + first[1:], *(msg.removeprefix("Input should be ") for msg in others)])
    return f"{key}={_shown(error['input'])} (from {source}) does not fit: {wanted}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _unknown_key(key: str, known: dict[str, Any], source: str) -> str:
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    near = same_leaf or difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    near = near or [k for k in known if difflib.SequenceMatcher(None, k.rsplit(".", 1)[-1], leaf).ratio() > 0.75]
    hint = (
        f"did you mean {' or '.join(near[:2])}?"
        if near
        else f"the tables are {', '.join(k for k in known if '.' not in k)}"
    )
    return f"there is no setting '{key}' (from {source}); {hint}"


def _noun(kind: Kind) -> str:
    return kind.removesuffix("s")


def _example(kind: Kind) -> str:
    return "optim.lr=3e-4" if kind == "presets" else "source.path=my.jsonl"
