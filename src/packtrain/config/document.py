"""Decides what docs/configuration.md says: tables made from the configuration classes. `make docs` writes it."""

import ast
import inspect
import itertools
import textwrap
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
An empty value or `unset` (`KEY=`, `KEY=unset`) unsets a key whose default is *unset*. `packtrain config PRESET [KEY=VALUE]...` shows
every value, as you can type it in a shell, and where it came from; `packtrain config` lists presets and recipes.

Numbers may be written as `50M`, `1.5B`, `10k` (10^6, 10^9, 10^3; T is 10^12), `1e6` or `524_288`; in a TOML file, those with a
letter are texts: `tokens = "50M"`.
Each of `train.steps`, `train.tokens` and `train.epochs` unsets the others if a preset or a base set them before; so do
`tokenizer.name` and `tokenizer.vocab_size`.

A preset or recipe of your own is a TOML file with the values that differ. `base = "demo"` on its first line builds it on a
shipped preset or recipe, or on another file (`base = "other.toml"`, relative to the file itself), instead of on the defaults.

`packtrain completion bash` prints a script that completes verbs, presets, recipes and settings; zsh and fish have one as well.

## Resuming

`packtrain resume RUN` continues a run with its own settings: those that it was last started or resumed with. Under torchrun, write
`torchrun ... -m packtrain resume RUN`. `packtrain train PRESET ... --resume` does the same if the run is there, and starts it if not;
settings that are not typed come from the run, and a preset that is not the run's is refused.

- May differ when typed, because they change no number: `train.device`, `train.micro_batch_size`, `train.activation_gb`,
  `train.attention`, `parallel.*`, `cpu.*`, `log.*`, `track.*`, `checkpoint.*`, `guard.stall_*`, `evaluate.prompts`,
  `evaluate.sample_tokens`, `data.verify`, and `data.dataset` for the same dataset in another folder. The first two,
  `train.attention`, `parallel.*` and `cpu.*` change the order in which numbers are added.
- Can never change: `model.*`, `data.seq_len`, `data.packing`, `data.repack`, `data.document_mask`, `train.seed`,
  `train.global_batch_tokens`, `optim.name`, `train.anneal_from`, `train.init_from`, `train.continue_from`, `train.extend_vocab`.
  To change one that is not of the model, start a new run from the weights:
  `packtrain train RUN/config.toml KEY=VALUE --continue-from RUN --run NEW` (see
  [coming-in.md](coming-in.md)).
- All others, such as `optim.lr` and `train.steps`: a typed value that differs is refused, unless it is given as `--change KEY=VALUE`.

`--change` may be given again and again, and the same command may be repeated: what already is as it says changes nothing. Each
setting that differs from those that made the checkpoint is a `changed` event in `events.jsonl`, which the report shows.

A run becomes longer with `--change train.steps=N`. A `constant` schedule stays as it is, and `wsd` starts its decay later; `cosine` and
`linear` decay towards the last step, so a later end raises the learning rate. The command says what it is for the next step, and what
it would be without the change. To train longer without such a jump, use `wsd` or `constant`, and `train --anneal-from`.
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
            meanings = field_docstrings(section)
            lines += [
                _row(f"{table}.{name}", field, field.description or meanings.get(name))
                for name, field in section.model_fields.items()
            ]
            lines.append("")
    return "\n".join(lines)


def field_docstrings(cls: type[BaseModel]) -> dict[str, str]:
    """The docstring of each field of a section, by name: the string on the line after it. The source code is parsed for them."""
    found = {}
    for owner in reversed([c for c in cls.__mro__ if issubclass(c, BaseModel) and c is not BaseModel]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in itertools.pairwise(node.body):
            match (field, text):
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str() as meaning)):
                    found[name] = inspect.cleandoc(meaning)
    return found


def _sections(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in cls.model_fields.items():
        inner = next((t for t in _members(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)
        if inner is not None:
            yield prefix + name, inner
            yield from _sections(inner, f"{prefix}{name}.")


def _row(key: str, field: FieldInfo, meaning: str | None) -> str:
    default = "required" if field.is_required() else "unset" if field.default is None else f"`{_value(field.default)}`"
    return f"| `{key}` | {_type(field.annotation)} | {default} | {_text(meaning)} |"


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
