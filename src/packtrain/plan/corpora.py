"""Decides how many tokens the text of a shipped recipe has, before it is prepared, and which recipe a preset is meant for."""

from dataclasses import dataclass

from packtrain.plan.choice import TOKENS_PER_PARAMETER


@dataclass(frozen=True)
class Corpus:
    """The text that a shipped recipe reads."""

    recipe: str
    tokens: int
    """Approximate: another tokenizer, filter or version of the source gives another number."""
    source: str
    """Who counted them, and with which tokenizer."""
    vocab_size: int
    """Of the tokenizer that the recipe names or trains."""


_FINEWEB = "by its card, with GPT-2's tokenizer; before the validation split"
CORPORA = {
    corpus.recipe: corpus
    for corpus in (
        Corpus("fineweb-edu-10bt", 10_000_000_000, _FINEWEB, 32_000),
        Corpus("fineweb-edu-100bt", 100_000_000_000, _FINEWEB, 32_000),
        Corpus("tinystories", 470_000_000, "its training split with GPT-2's tokenizer, as others counted", 4096),
        Corpus("stdlib", 2_300_000, "its training side, counted with Python 3.11", 4096),
    )
}

# The recipes that the presets' headers name, the one to train on first.
_RECIPE_OF = {
    "demo": "stdlib",
    "llama2-15m": "tinystories",
    "llama2-42m": "tinystories",
    "llama2-110m": "tinystories",
    "llama2-437m": "fineweb-edu-100bt",
    "llama2-437m-h16": "fineweb-edu-100bt",
    "llama2-437m-h8": "fineweb-edu-100bt",
    "llama2-15m-fast": "tinystories",
    "llama2-42m-fast": "tinystories",
    "llama2-110m-fast": "tinystories",
    "llama2-437m-fast": "fineweb-edu-10bt",
}


def corpus_for(preset: str) -> Corpus | None:
    """The corpus that a shipped preset is meant for; None for a preset of one's own."""
    recipe = _RECIPE_OF.get(preset)
    return CORPORA[recipe] if recipe else None


def optimal_tokens(num_parameters: int) -> int:
    """Tokens of a compute-optimal run (Hoffmann et al. 2022)."""
    return TOKENS_PER_PARAMETER * num_parameters
