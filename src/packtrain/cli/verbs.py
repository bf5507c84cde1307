"""Decides how a verb is found: its module is imported when it is used."""

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from packtrain.cli.first_screen import VERBS, first_screen
from packtrain.cli.usage import Verb, nearest
from packtrain.errors import ConfigError


def load_verb(name: str) -> TyperCommand:
    """The command of a verb, from the function of its name in the module of its name."""
    # Python keeps the word `import` for itself.
    name_in_python = "import_" if name == "import" else name
    function = getattr(importlib.import_module(f"packtrain.cli.{name_in_python}"), name_in_python)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name, cls=Verb)(function)
    command = typer.main.get_command(alone)
    assert isinstance(command, TyperCommand), "an application of one command is that command"
    return command


class Verbs(TyperGroup):
    """All verbs."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        formatter.write(first_screen())

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        return load_verb(cmd_name) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in VERBS:
            raise ConfigError(f"packtrain has no verb '{args[0]}'; {nearest(args[0], list(VERBS))}`packtrain --help`")
        return super().resolve_command(ctx, args)
