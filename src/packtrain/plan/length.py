"""Decides how long a planned run is, in steps, tokens and epochs, and which vocabulary it has, with or without a dataset."""

import math
from dataclasses import dataclass, field
from typing import Any

from packtrain.config.run import RunConfig
from packtrain.plan.corpora import Corpus
from packtrain.plan.vocabulary import check_vocabulary, set_vocabulary


@dataclass(frozen=True)
class Length:
    """How long a run is. Steps and tokens are None if nothing says it."""

    steps: int | None
    tokens: int | None
    basis: str
    """What the length and the epochs follow from, in words."""
    epoch_tokens: int | None = None
    """Tokens to train on in one pass of the data; None if there is neither a dataset nor a known corpus."""
    is_approximate: bool = False
    """Whether the tokens of an epoch are those of a corpus before it is prepared."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """How often each dataset of a mixture is seen."""

    @property
    def epochs(self) -> float | None:
        return None if not self.tokens or not self.epoch_tokens else self.tokens / self.epoch_tokens


def find_length(config: RunConfig, corpus: Corpus | None = None) -> Length:
    """The length of a run: as set, or one epoch of its dataset, or of `corpus` if it names no dataset.

    Raises DatasetError if the dataset that it names cannot be read.
    """
    batch = config.train.global_batch_tokens
    if config.data.dataset is not None:
        return _length_of_dataset(config)
    given = config.given_steps
    if corpus is None:
        basis = "as set" if given is not None else "no dataset is named"
        return Length(given, None if given is None else given * batch, basis)
    steps = given if given is not None else max(1, math.ceil((config.train.epochs or 1) * corpus.tokens / batch))
    basis = _describe_epochs(config) + corpus.recipe
    return Length(steps, steps * batch, basis, corpus.tokens, is_approximate=True)


def assume_vocabulary(config: RunConfig, corpus: Corpus | None = None) -> tuple[RunConfig, str]:
    """`config` with a vocabulary, and where that comes from: the settings, the dataset, the recipe, or a usual size."""
    if config.data.dataset is not None:
        from packtrain.data.feed.datasets import open_run_datasets

        datasets = open_run_datasets(config.data)
        check_vocabulary(config, datasets)
        size, source = datasets.tokenizer.vocab_size, "the dataset's"
    elif corpus is not None:
        size, source = corpus.vocab_size, f"{corpus.recipe}'s"
    else:
        size, source = config.model.vocab_rows, "assumed, as Llama 2's"
    return set_vocabulary(config, size), source if config.model.vocab_size is None else ""


def _length_of_dataset(config: RunConfig) -> Length:
    from packtrain.data.feed.datasets import open_run_datasets

    sources = open_run_datasets(config.data)
    # `concat` counts rows at once, and its count is within a thousandth of what `bestfit` makes.
    rows = sources.layout(config.data.seq_len, "concat")
    steps = config.num_steps(rows.num_rows, rows.num_places)
    tokens = steps * config.train.global_batch_tokens
    basis = f"{_describe_epochs(config)}{sources.name}"
    if len(sources.parts) == 1:
        return Length(steps, tokens, basis, rows.num_targets)
    seen = sources.outlook(rows, config.rows_per_step, steps)
    described = [
        {
            "name": source.name,
            "share": source.share,
            "epoch_tokens": source.rows * config.data.seq_len,
            "epochs": source.epochs,
            "last_step": source.last_step,
        }
        for source in seen
    ]
    return Length(steps, tokens, basis, rows.num_targets, sources=described)


def _describe_epochs(config: RunConfig) -> str:
    """What the length is of the data, if the data gives it."""
    if config.given_steps is not None or config.train.epochs is not None:
        return ""
    return "one epoch of "


def validation_tokens(config: RunConfig, steps: int | None) -> int:
    """Tokens that all validations of a run read, at evaluate.tokens each; a smaller validation split makes them fewer."""
    every = config.evaluate.every
    if not steps or not every:
        return 0
    # The last step is always followed by one.
    return -(-steps // every) * config.evaluate.tokens
