"""Decides how a tokenizer of our own comes about: a byte-level BPE, trained on the training side of a recipe's documents."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from packtrain.data.format.manifest import SPLITS
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import ConfigError, SourceError
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.keep import kept_rows, read_keep
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import read_scan, sides

BOS, EOS = "<|bos|>", "<|eos|>"
LEAST_VOCABULARY = 256 + 2
# More text changes merges little and costs seconds for every 4 MB.
SAMPLE_BYTES = 1 << 27
# A word is what lies between spaces; merging in one of megabytes takes minutes, and teaches nothing.
_LONGEST_WORD = 1024


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with every byte in its alphabet, so no text is unknown to it. The same texts give the same tokenizer.

    Raises ConfigError if vocab_size is too small for the bytes and the two control tokens.
    """
    if vocab_size < LEAST_VOCABULARY:
        raise ConfigError(
            f"tokenizer.vocab_size={vocab_size} is too small, as 256 bytes and 2 control tokens need an id each; "
            f"write tokenizer.vocab_size={LEAST_VOCABULARY} or more"
        )
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(chain.from_iterable(map(_with_short_words, texts)), trainer)
    return Tokenizer(raw.to_str(pretty=True), {"bos_token": BOS, "eos_token": EOS}, "the trained tokenizer")


def training_texts(place: Results, slices: Sequence[Slice]) -> Iterator[str]:
    """Kept documents of the training side, in source order; of a large source a share, chosen by content hash."""
    total = 0
    for work in slices:
        scan = read_scan(place, work)
        total += int(scan["utf8_bytes"][_is_trained_on(place, work, scan)].sum())
    if total == 0:
        raise SourceError("no document is left on the training side to train a tokenizer on; add text to the source")
    share = min(1.0, SAMPLE_BYTES / total)
    for work in slices:
        scan = read_scan(place, work)
        chosen = _is_trained_on(place, work, scan)
        if share < 1.0:
            chosen &= scan["content"][:, 1] < share * 2.0**64
        if chosen.any():
            yield from (kept.text for kept in kept_rows(place, work, chosen))


def _is_trained_on(place: Results, work: Slice, scan: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    chosen: npt.NDArray[np.bool_] = read_keep(place, work) & (sides(place, work, scan) == SPLITS.index("train"))
    return chosen


def _with_short_words(text: str) -> Iterator[str]:
    words = text.split(" ")
    if len(max(words, key=len)) <= _LONGEST_WORD:
        yield text
        return
    yield " ".join(word for word in words if len(word) <= _LONGEST_WORD)
