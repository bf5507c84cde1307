"""`packtrain config`: every value of a preset or recipe, and where it came from; without one, which there are."""

import shlex
from typing import Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.completion import complete_targets, complete_words
from packtrain.cli.options import AsJson
from packtrain.config.shipped import Kind, describe_shipped, shipped

# Longer values stand out of their column.
_WIDEST = 32


def config(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[PRESET]",
            help="A preset, a recipe, or a TOML file; without one, all are listed.",
            autocompletion=complete_targets,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Values to set, such as optim.lr=3e-4.", autocompletion=complete_words
        ),
    ] = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Read PRESET as a recipe.")] = False,
    as_toml: Annotated[bool, typer.Option("--toml", help="Print a TOML file that can be given as PRESET.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every value of a preset or recipe, and where it came from.

    Values are shown as they can be typed in a shell, as KEY=VALUE.
    """
    from packtrain.config import load
    from packtrain.config.words import show

    if target is None:
        _list_shipped(as_json=as_json)
        return
    is_recipe = recipe or (target in shipped("recipes") and target not in shipped("presets"))
    loaded = load.load_recipe(target, settings or ()) if is_recipe else load.load_run_config(target, settings or ())
    if as_json:
        screen.print_json({"config": loaded.config.model_dump(mode="json"), "origins": loaded.origins})
        return
    if as_toml:
        print(load.to_toml(loaded.config), end="")
        return
    rows = [("key", "value", "from")]
    for key, value in load.flatten(loaded.config):
        rows.append((key, shlex.quote(show(value)), loaded.origins.get(key, "default")))
    widths = [max(len(row[column]) for row in rows if len(row[column]) <= _WIDEST) for column in (0, 1)]
    for number, (key, value, origin) in enumerate(rows):
        is_set = number and origin != "default"
        text = f"{value:<{widths[1]}}  {origin}"
        # Not folded at the width of the screen: a value that is could not be copied.
        screen.line(f"{key:<{widths[0]}}  ", text, is_dim=not is_set)


def _list_shipped(*, as_json: bool) -> None:
    """Prints the name and one line of each preset, with its size and length, and of each recipe."""
    from packtrain.config.load import load_run_config
    from packtrain.plan.parameters import num_parameters
    from packtrain.report.figures import short

    presets: list[dict[str, Any]] = []
    for name, about in describe_shipped("presets").items():
        run = load_run_config(name).config
        tokens = run.given_steps * run.train.global_batch_tokens if run.given_steps else None
        presets.append(
            {
                "name": name,
                "about": about,
                "parameters": num_parameters(run.model),
                "tokens": tokens,
                "epochs": run.train.epochs or (None if tokens else 1),
            }
        )
    recipes = [{"name": name, "about": about} for name, about in describe_shipped("recipes").items()]
    if as_json:
        screen.print_json({"presets": presets, "recipes": recipes})
        return
    kinds: dict[Kind, list[dict[str, Any]]] = {"presets": presets, "recipes": recipes}
    width = max(len(each["name"]) for listed in kinds.values() for each in listed)
    for kind, listed in kinds.items():
        print(f"{kind.capitalize()}:")
        for each in listed:
            size = f"{short(each['parameters'])} parameters, " if "parameters" in each else ""
            length = _length(each) if size else ""
            print(f"  {each['name']:<{width}}  {size}{length}{each['about']}")
    print(
        "\nParameters are computed; a preset that does not set model.vocab_size is counted with one of 32,000 tokens."
    )
    print("`packtrain config NAME` shows all settings of one.")


def _length(preset: dict[str, Any]) -> str:
    from packtrain.report.figures import short

    if preset["tokens"]:
        return f"{short(preset['tokens'])} tokens. "
    return "one epoch. " if preset["epochs"] == 1 else f"{preset['epochs']:g} epochs. "
