"""`packtrain config`: every value of a preset or recipe, and where it came from."""

from typing import Annotated

import typer

from packtrain.cli import screen
from packtrain.cli.options import AsJson, Settings


def config(
    target: Annotated[str, typer.Argument(metavar="PRESET", help="A preset, a recipe, or a TOML file.")],
    settings: Settings = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Read PRESET as a recipe.")] = False,
    as_toml: Annotated[bool, typer.Option("--toml", help="Print a TOML file that can be given as PRESET.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every value of a preset or recipe, and where it came from."""
    from packtrain.config import load
    from packtrain.config.shipped import shipped

    is_recipe = recipe or (target in shipped("recipes") and target not in shipped("presets"))
    loaded = load.load_recipe(target, settings or ()) if is_recipe else load.load_run_config(target, settings or ())
    if as_json:
        screen.print_json({"config": loaded.config.model_dump(mode="json"), "origins": loaded.origins})
        return
    if as_toml:
        print(load.to_toml(loaded.config), end="")
        return
    shown = screen.table("key", "value", "from")
    for key, value in load.flatten(loaded.config):
        origin = loaded.origins.get(key)
        text = screen.escape("unset" if value is None else str(value))
        shown.add_row(key, text if origin else f"[dim]{text}[/dim]", origin or "[dim]default[/dim]")
    screen.console.print(shown)
