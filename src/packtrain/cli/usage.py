"""Decides how help looks, and what is said of a command line that cannot be parsed."""

import difflib
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from packtrain.cli.interrupts import describe_stop
from packtrain.config.shipped import shipped
from packtrain.errors import ConfigError, Interrupted

# Of click, or of the copy of it that newer versions of typer bring along.
UsageError = cast(type[Exception], typer.BadParameter.__base__)

_DOCS = "README.md and docs/ in the source repository; docs/configuration.md lists every setting"


class Verb(TyperCommand):
    """A verb whose usage line reads `packtrain train PRESET [KEY=VALUE]... [OPTIONS]`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # The library would end the program with a code of its own.
            raise Interrupted(describe_stop()) from None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [param.metavar for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return [*(str(metavar) for metavar in arguments), "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for param in cast(list[Any], self.get_params(ctx)):
            name, text = param.get_help_record(ctx)
            is_argument = param.param_type_name == "argument"
            rows[param.param_type_name].append((param.metavar, param.help) if is_argument else (name, text))
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            if rows[kind]:
                with formatter.section(title):
                    formatter.write_dl(rows[kind])


class Verbs(TyperGroup):
    """The first screen: every verb, by group, with the presets and recipes that there are."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.command_path, "VERB [OPTIONS] ...")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"{self.help}\n\n`packtrain VERB --help` lists what a verb takes.")
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, verb in cast(dict[str, Any], self.commands).items():
            groups.setdefault(verb.rich_help_panel, []).append((name, str(verb.help).partition("\n")[0]))
        width = max(map(len, self.commands))
        names = [("Presets", _wrapped(shipped("presets"))), ("Recipes", _wrapped(shipped("recipes"))), ("Docs", _DOCS)]
        for title, verbs in (groups | {"More": names}).items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in verbs])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            raise ConfigError(
                f"packtrain has no verb '{args[0]}'; {_nearest(args[0], list(self.commands))}`packtrain --help`"
            )
        return super().resolve_command(ctx, args)


def refusal(error: Any) -> ConfigError:
    """What to say of a command line that the library could not parse, in one sentence."""
    command = "packtrain" if error.ctx is None or error.ctx.parent is None else f"packtrain {error.ctx.info_name}"
    more = f"`{command} --help`"
    kind, param = type(error).__name__, getattr(error, "param", None)
    if kind == "NoSuchOption":
        options = [name for known in error.ctx.command.get_params(error.ctx) for name in known.opts]
        return ConfigError(
            f"`{command}` has no option {error.option_name}; {_nearest(error.option_name, options)}{more}"
        )
    if param is None:
        return ConfigError(f"{_lowered(error.format_message())}; see {more}")
    name = param.metavar if param.param_type_name == "argument" else param.opts[0]
    if kind == "MissingParameter":
        wanted = name if param.param_type_name == "argument" else f"{name} {param.metavar}"
        return ConfigError(
            f"`{command}` needs {name} ({_lowered(param.help.rstrip('.'))}); write `{command} {wanted}`, or see {more}"
        )
    return ConfigError(
        f"{name}{_given(error)} does not fit: {_lowered(error.message.removeprefix('Value error, '))}; see {more}"
    )


def _wrapped(names: Iterable[str]) -> str:
    """Names with commas, whole. The mark in front tells the library not to wrap the lines again, which would cut at hyphens."""
    return "\b\n" + textwrap.fill(", ".join(names), 60, break_on_hyphens=False)


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}? see " if near else "see "


def _given(error: Any) -> str:
    """The value that does not fit, if the library says it."""
    cause: Any = error.__cause__
    return f" {cause.errors()[0]['input']}" if hasattr(cause, "errors") else ""


def _lowered(sentence: str) -> str:
    return (sentence[:1].lower() + sentence[1:]).rstrip(".")
