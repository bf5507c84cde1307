"""Decides which shipped preset fits a dataset, and how long it is worth training on it."""

import math
from typing import NamedTuple

from packtrain.config.load import load_run_config
from packtrain.config.shipped import shipped
from packtrain.plan.parameters import num_parameters
from packtrain.plan.vocabulary import fits_vocabulary, set_vocabulary

TOKENS_PER_PARAMETER = 20
"""Of compute-optimal training (Hoffmann et al., arXiv 2203.15556)."""
MOST_EPOCHS = 4
"""Repeated this often, text is nearly worth as much as new text (Muennighoff et al., arXiv 2305.16264)."""


class Choice(NamedTuple):
    """A preset, the settings that give it its length, and what they come to."""

    preset: str
    settings: tuple[str, ...]
    parameters: int
    tokens: int
    epochs: float


def choose_preset(tokens: int, vocabulary: int) -> Choice:
    """The shipped preset whose size is nearest to one parameter for each 20 of the dataset's training `tokens`.

    It trains for 20 tokens a parameter, but for no more than four epochs. A preset that has another vocabulary than the dataset
    is not taken.
    """
    sizes = {}
    configs = {name: load_run_config(name).config for name in shipped("presets")}
    for name, config in configs.items():
        # A preset that is so many epochs long is for repeated text, whatever its size.
        if config.train.epochs is not None:
            continue
        if config.model.vocab_size is None or fits_vocabulary(vocabulary, config.model.vocab_size):
            sizes[name] = num_parameters(set_vocabulary(config, vocabulary).model)
    wanted = max(1, tokens) / TOKENS_PER_PARAMETER
    # Of equal sizes, the one with the shortest name is the plain one.
    name = min(sizes, key=lambda each: (abs(math.log(sizes[each] / wanted)), len(each)))
    train = configs[name].train
    length = min(TOKENS_PER_PARAMETER * sizes[name], MOST_EPOCHS * tokens)
    steps = max(1, _round_down(length // train.global_batch_tokens))
    length = max(train.global_batch_tokens, _round_down(length))
    if train.steps is not None:
        return _describe(name, f"train.steps={steps}", sizes[name], steps * train.global_batch_tokens, tokens)
    return _describe(name, f"train.tokens={length:_}", sizes[name], length, tokens)


def _describe(preset: str, setting: str, parameters: int, length: int, tokens: int) -> Choice:
    return Choice(preset, (setting,), parameters, length, length / max(1, tokens))


def _round_down(count: int) -> int:
    """The number with its first two digits, and zeros."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return count // unit * unit
