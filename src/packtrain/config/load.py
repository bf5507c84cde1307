"""Decides how a configuration is read: defaults, then a preset or file, then KEY=VALUE; remembers where each value came from."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from packtrain.config.base import Section
from packtrain.config.refusals import explain, shown, unknown_key
from packtrain.config.shipped import KINDS, Kind, shipped
from packtrain.config.values import parse_toml, parse_value, read_number, section_of
from packtrain.errors import ConfigError

if TYPE_CHECKING:
    from packtrain.config.recipe import Recipe
    from packtrain.config.run import RunConfig

COMMAND_LINE = "the command line"
"""The origin of values that were typed."""
# Setting one of these unsets the others, if they were set before: by a base, a preset, or the run that is resumed.
_UNSETS = {
    "train.steps": ("train.tokens", "train.epochs"),
    "train.tokens": ("train.steps", "train.epochs"),
    "train.epochs": ("train.steps", "train.tokens"),
    "train.init_from": ("train.continue_from", "train.anneal_from"),
    "train.continue_from": ("train.init_from", "train.anneal_from"),
    "train.anneal_from": ("train.init_from", "train.continue_from"),
    "tokenizer.name": ("tokenizer.vocab_size", "tokenizer.revision"),
    "tokenizer.vocab_size": ("tokenizer.name", "tokenizer.revision"),
}
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """A configuration, and where each value that is not a default was set or unset, by dotted key."""

    config: S
    origins: dict[str, str]


def load_run_config(target: str, overrides: Sequence[str] = ()) -> "Resolved[RunConfig]":
    """The configuration of a run, from a preset or a TOML file, changed by `KEY=VALUE` words.

    Raises ConfigError for an unknown preset or key, a value that does not fit, or a file that is not TOML.
    """
    from packtrain.config.run import RunConfig

    return _load(RunConfig, _read_layers("presets", target), overrides, "presets")


def load_recipe(target: str, overrides: Sequence[str] = ()) -> "Resolved[Recipe]":
    """The recipe of a dataset, from a shipped recipe or a TOML file, changed by `KEY=VALUE` words.

    Raises ConfigError for an unknown recipe or key, a value that does not fit, or a file that is not TOML.
    """
    from packtrain.config.recipe import Recipe

    return _load(Recipe, _read_layers("recipes", target), overrides, "recipes")


def change_run_config(config: "RunConfig", overrides: Sequence[str], source: str) -> "RunConfig":
    """`config`, which came from `source`, changed by `KEY=VALUE` words. Raises ConfigError as `load_run_config` does."""
    from packtrain.config.run import RunConfig

    return _load(RunConfig, [(config.model_dump(), source)], overrides, "presets").config


def read_stated(target: str) -> dict[str, Any]:
    """What a preset or file and its bases state, by dotted key, as written there and unchecked."""
    tree: dict[str, Any] = {}
    annotations = dict(dotted_keys(_class_of("presets")))
    for layer, _ in _read_layers("presets", target):
        _overlay(tree, layer, annotations)
    return dict(_leaves(tree, annotations))


def to_toml(config: Section) -> str:
    """The whole configuration as TOML; reading it back gives an equal one. Unset values are left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def from_toml(cls: type[S], text: str, source: str) -> S:
    """A configuration from TOML that `to_toml` wrote. `source` names it in errors."""
    return _validate(cls, _parse_file(text, source), source, {})


def dotted_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that can be set, with its type annotation, in the order of the classes."""
    for name, field in cls.model_fields.items():
        inner = section_of(field.annotation)
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


def rivals(key: str) -> tuple[str, ...]:
    """`key`, and the settings that setting it unsets."""
    return (key, *_UNSETS.get(key, ()))


def split_word(word: str, kind: Kind = "presets") -> tuple[str, str]:
    """The key and the value of a `KEY=VALUE` word. Raises ConfigError if it is not one."""
    # As Python reads bytes of the command line that are not UTF-8.
    if any("\ud800" <= character <= "\udfff" for character in word):
        raise ConfigError(f"{word!a} has bytes that are not UTF-8; rename what it names, and write that")
    key, equals, raw = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{word}' is not a setting; write KEY=VALUE, for example {_example(kind)}")
    return key, raw


def _load(
    cls: type[S], layers: Sequence[tuple[dict[str, Any], str]], overrides: Sequence[str], kind: Kind
) -> Resolved[S]:
    annotations = dict(dotted_keys(cls))
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer, source in [*layers, (_read_words(overrides, annotations, kind), COMMAND_LINE)]:
        said = dict(_leaves(layer, annotations))
        _unset_rivals(tree, origins, said, source)
        _overlay(tree, layer, annotations)
        origins |= dict.fromkeys(said, source)
    return Resolved(_validate(cls, tree, layers[-1][1], origins), origins)


def _read_words(words: Sequence[str], annotations: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """The tables that `KEY=VALUE` words make."""
    tree: dict[str, Any] = {}
    for word in words:
        key, raw = split_word(word, kind)
        if key not in annotations:
            raise ConfigError(unknown_key(key, annotations, _all_keys(), COMMAND_LINE))
        _set(tree, key, parse_value(raw, annotations[key]))
    return tree


def _unset_rivals(tree: dict[str, Any], origins: dict[str, str], said: dict[str, Any], source: str) -> None:
    """Unsets in `tree` what cannot be set beside the values that a layer has `said`."""
    for key in said.keys() & _UNSETS.keys():
        table, _, leaf = key.rpartition(".")
        below = tree.get(table)
        if not isinstance(below, dict) or said[key] in (None, below.get(leaf)):
            continue
        for other in _UNSETS[key]:
            other_leaf = other.rpartition(".")[2]
            if other not in said and below.get(other_leaf) is not None:
                below[other_leaf] = None
                origins[other] = source


def _read_layers(kind: Kind, target: str) -> list[tuple[dict[str, Any], str]]:
    """The tables of a preset or file with their name, last; before it those of its `base`, of that one's base, and so on."""
    annotations = dict(dotted_keys(_class_of(kind)))
    layers: list[tuple[dict[str, Any], str]] = []
    while target or not layers:
        text, source = _read_target(kind, target)
        if source in (known for _, known in layers):
            raise ConfigError(f"{source} is its own base, through base in {layers[0][1]}; name another base there")
        tree = _parse_file(text, source)
        base = tree.pop("base", "")
        _read_numbers(tree, annotations)
        if not isinstance(base, str):
            raise ConfigError(
                f"base={shown(base)} (from {source}) does not fit: write the name of a {_noun(kind)}, or a TOML file's path"
            )
        layers.insert(0, (tree, source))
        # A path is relative to the file that names it.
        target = str(Path(target).parent / base) if base.endswith(".toml") else base
    return layers


def _read_numbers(tree: dict[str, Any], annotations: dict[str, Any], prefix: str = "") -> None:
    """Turns numbers that a file has as texts, such as `"50M"`, into numbers."""
    for name, value in tree.items():
        annotation = annotations.get(prefix + name)
        if isinstance(value, dict) and section_of(annotation):
            _read_numbers(value, annotations, f"{prefix}{name}.")
        elif isinstance(value, str) and annotation is not None:
            tree[name] = read_number(value, annotation)


def _overlay(under: dict[str, Any], over: dict[str, Any], annotations: dict[str, Any], prefix: str = "") -> None:
    """Puts the values of `over` into `under`, key by key. A table that is not a section, such as a mixture, replaces the other."""
    for name, value in over.items():
        below = under.get(name)
        if not isinstance(value, dict) or below is None or not section_of(annotations.get(prefix + name)):
            under[name] = value
        elif isinstance(below, dict):
            _overlay(below, value, annotations, f"{prefix}{name}.")
        else:
            inner = next(iter(value), "KEY")
            raise ConfigError(
                f"{prefix}{name}.{inner} cannot be set, because {name} in the file is not a table; write [{prefix}{name}] there"
            )


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


def _parse_file(text: str, source: str) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except RecursionError:
        raise ConfigError(
            f"{source} is not valid TOML (its values are nested too deeply); write flatter ones"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{source} is not valid TOML ({error}); fix that line") from None


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, leaf = key.split(".")
    for name in path:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise ConfigError(
                f"{key} cannot be set, because {name} was set to something else than a table; leave that out"
            )
    tree[leaf] = value


def _leaves(tree: dict[str, Any], annotations: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in a tree by dotted key. A table that is not a section is one value."""
    for name, value in tree.items():
        if isinstance(value, dict) and section_of(annotations.get(prefix + name)):
            yield from _leaves(value, annotations, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _validate(cls: type[S], tree: dict[str, Any], source: str, origins: dict[str, str]) -> S:
    try:
        return cls.model_validate(tree)
    except ValidationError as failure:
        raise ConfigError(explain(failure.errors(), dict(dotted_keys(cls)), _all_keys(), origins, source)) from None


def _all_keys() -> dict[str, Kind]:
    """Every setting that there is, and what it is a setting of."""
    return {key: kind for kind in KINDS for key, _ in dotted_keys(_class_of(kind))}


def _class_of(kind: Kind) -> type[Section]:
    """The class of a kind of configuration, imported when it is needed: each takes a tenth of the time of `config`."""
    if kind == "presets":
        from packtrain.config.run import RunConfig

        return RunConfig
    from packtrain.config.recipe import Recipe

    return Recipe


def _noun(kind: Kind) -> str:
    return kind.removesuffix("s")


def _example(kind: Kind) -> str:
    return "optim.lr=3e-4" if kind == "presets" else "source.path=my.jsonl"
