"""Decides how many rows the embedding of a run has: as many as it sets, else as its dataset's tokenizer has ids."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from packtrain.config.run import RunConfig
from packtrain.errors import TokenizerError

if TYPE_CHECKING:
    from packtrain.data.feed.datasets import RunDatasets


def set_vocabulary(config: RunConfig, size: int) -> RunConfig:
    """The configuration with `size` rows, unless it sets model.vocab_size itself."""
    if config.model.vocab_size is not None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})


def fits_vocabulary(own: int, rows: int) -> bool:
    """Whether a model with this many rows can train on a tokenizer of `own` ids."""
    # A vocabulary rounded up makes matrix products faster, so the model may have some rows that no token uses.
    return own <= rows <= math.ceil(own / 128) * 128


def check_vocabulary(config: RunConfig, datasets: RunDatasets) -> None:
    """Raises TokenizerError if the run sets a vocabulary that is not that of its datasets."""
    own, rows, train = datasets.tokenizer.vocab_size, config.model.vocab_size, config.train
    if (train.init_from or train.continue_from) and not train.extend_vocab:
        # Their model may have any number of rows that no token uses; its tokenizer is compared with the datasets' at the start.
        return
    if rows is not None and not fits_vocabulary(own, rows):
        raise TokenizerError(
            f"the tokenizer of {datasets.name} has {own} tokens, but model.vocab_size={rows}; write model.vocab_size={own}, "
            "which gives the model another number of parameters, or train on a dataset prepared with the model's tokenizer"
        )
