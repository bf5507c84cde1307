"""Decides the arguments and options that several verbs share: one name and one explanation for each."""

from pathlib import Path
from typing import Annotated

import typer

from packtrain.api.target import is_dataset as is_dataset
from packtrain.api.target import is_ladder as is_ladder
from packtrain.api.target import which_checkpoint as which_checkpoint

Preset = Annotated[str, typer.Argument(metavar="PRESET", help="A preset, or a TOML file.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe, or a TOML file.")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values to set, such as optim.lr=3e-4.")
]
RecipeSettings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values to set, such as source.path=FOLDER.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `packtrain train` wrote.")]
Step = Annotated[int | None, typer.Option("--step", metavar="N", help="Use the checkpoint of step N.")]
Best = Annotated[bool, typer.Option("--best", help="Use the checkpoint with the lowest validation loss, not the last.")]
Change = Annotated[
    list[str] | None,
    typer.Option(
        "--change", metavar="KEY=VALUE", help="Continue a resumed run with another value; can be given again."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
