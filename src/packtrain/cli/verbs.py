"""Decides which verbs there are and what the first screen says of them; the module of a verb is imported when it is used."""

import importlib
import textwrap
from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from packtrain.cli.usage import Verb, nearest
from packtrain.config.shipped import shipped
from packtrain.errors import ConfigError

# The first line of each verb's own help, so that the first screen imports none of them.
GROUPS = {
    "First steps": {
        "demo": "Take a small corpus through every step, in minutes on a CPU.",
        "config": "Show every value of a preset or recipe, and where it came from.",
    },
    "Data": {
        "prepare": "Turn text into a dataset: clean, deduplicate, split, tokenize.",
        "import": "Make a dataset from another program's token files.",
        "tokenizer": "Train a tokenizer on a recipe's text, or write out a model's.",
        "verify": "Check that a dataset is whole and unchanged.",
        "inspect": "Show a run, a step's rows, or when a document is trained on.",
        "diff": "Compare two datasets or two runs, and explain how they differ.",
    },
    "Training": {
        "plan": "Show the memory, time and cost of a run before it starts.",
        "ladder": "Predict a preset's loss from a few small runs on your data.",
        "train": "Train a model on a dataset, or resume a run.",
        "resume": "Continue a run where it stopped, with its own settings.",
        "runs": "List the runs in a folder and below it.",
        "report": "Write an HTML page about a run, several runs, or a dataset.",
    },
    "Using a model": {
        "evaluate": "Measure loss and bits per byte on held-out text, or in tasks.",
        "generate": "Continue prompts, or talk with the model in the terminal.",
        "serve": "Serve a model by OpenAI's API, with a page to play with it.",
        "export": "Write a model or dataset for other programs, and check it.",
    },
    "Machine": {
        "doctor": "Show what this machine can do, or check a run before it starts.",
        "completion": "Print a script that completes verbs and settings in a shell.",
    },
}
VERBS = {name: about for group in GROUPS.values() for name, about in group.items()}
_DOCS = "README.md and docs/ in the source repository; docs/configuration.md lists every setting"


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
    """The first screen: every verb, by group, with the presets and recipes that there are."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.command_path, "VERB [OPTIONS] ...")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"{self.help}\n\n`packtrain VERB --help` lists what a verb takes.")
        width = max(map(len, VERBS))
        names = {"Presets": _wrapped(shipped("presets")), "Recipes": _wrapped(shipped("recipes")), "Docs": _DOCS}
        for title, rows in {**GROUPS, "More": names}.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows.items()])

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        return load_verb(cmd_name) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in VERBS:
            raise ConfigError(f"packtrain has no verb '{args[0]}'; {nearest(args[0], list(VERBS))}`packtrain --help`")
        return super().resolve_command(ctx, args)


def _wrapped(names: Iterable[str]) -> str:
    """Names with commas, whole. The mark in front tells the library not to wrap the lines again, which would cut at hyphens."""
    return "\b\n" + textwrap.fill(", ".join(names), 60, break_on_hyphens=False)
