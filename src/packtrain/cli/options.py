"""Decides the arguments and options that several verbs share: one name and one explanation for each."""

from pathlib import Path
from typing import Annotated

import typer

from packtrain.api.target import is_dataset as is_dataset
from packtrain.api.target import is_ladder as is_ladder
from packtrain.api.target import which_checkpoint as which_checkpoint
from packtrain.cli.completion import complete_presets, complete_recipes, complete_words
from packtrain.cli.json_option import AsJson as AsJson

Preset = Annotated[
    str, typer.Argument(metavar="PRESET", help="A preset, or a TOML file.", autocompletion=complete_presets)
]
RecipeOrPath = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|PATH",
        help="A recipe, a TOML file, or a file, folder or URL of text.",
        autocompletion=complete_recipes,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Values to set, such as optim.lr=3e-4.", autocompletion=complete_words
    ),
]
RecipeSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Values to set, such as source.path=FOLDER.", autocompletion=complete_words
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `packtrain train` wrote.")]
Step = Annotated[int | None, typer.Option("--step", metavar="N", help="Use the checkpoint of step N.")]
Best = Annotated[bool, typer.Option("--best", help="Use the checkpoint with the lowest validation loss, not the last.")]
Last = Annotated[
    bool, typer.Option("--last", help="Of a run with train.stop_after: the last checkpoint, not the best.")
]
AverageChoice = Annotated[
    bool | None,
    typer.Option(
        "--average/--no-average",
        help="The average of the weights over steps (train.average), used if there is one, or the step's own.",
    ),
]
Change = Annotated[
    list[str] | None,
    typer.Option(
        "--change",
        metavar="KEY=VALUE",
        help="Continue a resumed run with another value; can be given again.",
        autocompletion=complete_words,
    ),
]
