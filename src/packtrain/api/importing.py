"""Decides how token files of another program become a recipe: what the files say, completed by what one is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from packtrain.errors import ConfigError

if TYPE_CHECKING:
    from packtrain.config.recipe import Recipe
    from packtrain.prepare.sources.imported import Survey


def complete_recipe(
    path: str, format: str, tokenizer: str, settings: Sequence[str], eot: str | None, split: str
) -> tuple[Recipe, Survey]:
    """The recipe with the settings that follow from what the files contain, and what that is."""
    from packtrain.config.load import load_recipe
    from packtrain.data.tokens.tokenizer import load_tokenizer
    from packtrain.prepare.sources.hub import tokenizer_folder
    from packtrain.prepare.sources.imported import survey

    words = [f"source.kind={format}", f"source.path={path}", f"tokenizer.name={tokenizer}"]
    # Settings of the split may fit only the way of splitting that is not known yet.
    recipe = load_recipe("import", [*words, *(word for word in settings if not word.startswith("split."))]).config
    opened = load_tokenizer(tokenizer_folder(recipe.tokenizer.name or "", recipe.tokenizer.revision))
    has_index = recipe.source.kind == "megatron"
    between = None if has_index else _boundary(eot, opened.eos_id)
    found = survey(recipe.source.model_copy(update={"eot": between}), opened.bos_id, opened.eos_id)
    names_files = any(word.startswith("split.validation_files=") for word in settings)
    by = split if split != "auto" else "files" if found.has_sides or names_files else "content"
    words += [
        f"split.by={by}",
        f"tokenizer.bos={str(found.begins).lower()}",
        f"tokenizer.eos={str(found.ends).lower()}",
    ]
    if between is not None:
        words += [f"source.eot={between}", f"source.eot_position={found.position}"]
    return load_recipe("import", [*words, *settings]).config, found


def _boundary(eot: str | None, eos_id: int | None) -> int | None:
    """The id between documents, from --eot or from the tokenizer."""
    if eot == "none":
        return None
    if eot is not None and not eot.isdecimal():
        raise ConfigError(f"--eot {eot} is not an id; write the number of the id between documents, or --eot none")
    if eot is None and eos_id is None:
        raise ConfigError("the tokenizer has no EOS token to separate documents by; write --eot ID, or --eot none")
    return int(eot) if eot is not None else eos_id
