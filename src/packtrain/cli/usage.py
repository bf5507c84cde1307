"""Decides how help looks, and what is said of a command line that cannot be parsed."""

import difflib
from collections.abc import Sequence
from typing import Any, cast

import typer
from typer.core import TyperCommand

from packtrain.cli.interrupts import describe_stop
from packtrain.errors import ConfigError, Interrupted

# Of click, or of the copy of it that newer versions of typer bring along.
UsageError = cast(type[Exception], typer.BadParameter.__base__)


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


def refusal(error: Any) -> ConfigError:
    """What to say of a command line that the library could not parse, in one sentence."""
    command = "packtrain" if error.ctx is None or error.ctx.parent is None else f"packtrain {error.ctx.info_name}"
    more = f"`{command} --help`"
    kind, param = type(error).__name__, getattr(error, "param", None)
    if kind == "NoSuchOption":
        options = [name for known in error.ctx.command.get_params(error.ctx) for name in known.opts]
        return ConfigError(
            f"`{command}` has no option {error.option_name}; {nearest(error.option_name, options)}{more}"
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


def nearest(word: str, known: Sequence[str]) -> str:
    """The beginning of a hint at the likeliest of the known words, before where to read more."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}? see " if near else "see "


def _given(error: Any) -> str:
    """The value that does not fit, if the library says it."""
    cause: Any = error.__cause__
    return f" {cause.errors()[0]['input']}" if hasattr(cause, "errors") else ""


def _lowered(sentence: str) -> str:
    return (sentence[:1].lower() + sentence[1:]).rstrip(".")
