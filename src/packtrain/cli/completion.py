"""`packtrain completion`: the script that completes verbs, presets, recipes and settings in a shell; and what it offers."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

import typer

from packtrain.cli.json_option import AsJson
from packtrain.config.shipped import shipped

COMPLETED_BY = "_PACKTRAIN_COMPLETE"
"""The environment variable by which a shell asks what there is."""
_RECIPE_VERBS = ("prepare", "tokenizer", "import")
# bash and zsh end a completed word with a space, after which no value could follow. fish does not after a =.
_BASH_NO_SPACE = "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n    return 0"
_ZSH_NO_SPACE = """  local offered=$({command})
  [[ $offered == *'="'* ]] && compadd() {{ builtin compadd -S '' "$@" }}
  eval $offered
  unfunction compadd 2>/dev/null
"""


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="bash|zsh|fish", help="Your shell.")],
    as_json: AsJson = False,
) -> None:
    """Print a script that completes verbs and settings in a shell.

    For example: packtrain completion bash >> ~/.bashrc
    """
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="packtrain", complete_var=COMPLETED_BY, shell=shell)
    if shell == "bash":
        script = script.replace("    return 0", _BASH_NO_SPACE)
    elif shell == "zsh":
        script = re.sub(r"  eval \$\((.*)\)\n", lambda line: _ZSH_NO_SPACE.format(command=line[1]), script)
    if as_json:
        from packtrain.cli import screen

        screen.print_json({"shell": shell, "script": script})
    else:
        print(script)


def complete_presets(incomplete: str) -> list[str]:
    """The presets that begin so."""
    return [name for name in shipped("presets") if name.startswith(incomplete)]


def complete_recipes(incomplete: str) -> list[str]:
    """The recipes that begin so."""
    return [name for name in shipped("recipes") if name.startswith(incomplete)]


def complete_targets(incomplete: str) -> list[str]:
    """The presets and recipes that begin so."""
    return complete_presets(incomplete) + complete_recipes(incomplete)


def complete_words(ctx: typer.Context, incomplete: str) -> list[str]:
    """The settings that begin so, as `KEY=`; after that, the values of a setting that has a choice of them."""
    from packtrain.config.load import dotted_keys
    from packtrain.config.recipe import Recipe
    from packtrain.config.run import RunConfig
    from packtrain.config.values import section_of

    is_recipe = ctx.info_name in _RECIPE_VERBS or ctx.params.get("target") in shipped("recipes")
    keys = {
        key: annotation
        for key, annotation in dotted_keys(Recipe if is_recipe else RunConfig)
        if section_of(annotation) is None
    }
    key, equals, begun = incomplete.partition("=")
    if equals and key:
        return [f"{key}={value}" for value in _choices(keys.get(key)) if value.startswith(begun)]
    # In bash, `optim.name=mu` is three words, of which the last is completed alone; of `optim.name=` the last is not passed on.
    before = list(ctx.params.get("settings") or ())
    if before[-1:] == ["="]:
        before.pop()
        is_value = True
    else:
        is_value = not incomplete
    if is_value and before and before[-1] in keys:
        return [value for value in _choices(keys[before[-1]]) if value.startswith(incomplete)]
    return [f"{name}=" for name in keys if name.startswith(incomplete)]


def _choices(annotation: Any) -> Iterator[str]:
    """The values that a setting may have, if they can be listed."""
    if annotation is bool:
        yield from ("true", "false")
    for inner in get_args(annotation):
        if isinstance(inner, str):
            yield inner
        else:
            yield from _choices(inner)
