"""Decides how a tokenizer of our own is made: a byte-level BPE, trained on the training side of a recipe's documents."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from packtrain.data.format.manifest import SPLITS
from packtrain.data.tokens.tokenizer import PIECE_CHARS, Tokenizer
from packtrain.errors import ConfigError, SourceError
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.keep import read_kept_documents
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import read_keep, read_scan
from packtrain.prepare.steps.sides import select_side

BOS, EOS = "<|bos|>", "<|eos|>"
LEAST_VOCABULARY = 256 + 2
# More text changes the merges little, and costs seconds for every 4 MB.
SAMPLE_BYTES = 1 << 27
_LETTER, _SIGN = r"[^\W\d_]", r"(?:[^\w\s]|_)"
# What the pre-tokenizer takes as one word: letters, digits, other signs, or whitespace. Merges within a word of megabytes take
# minutes and teach nothing.
_LONG_WORD = re.compile("|".join(f" ?(?<!{kind}){kind}{{1025,}}" for kind in (_LETTER, r"\d", _SIGN, r"\s")))
# Where two words always meet: before a space or line break between two of them, and after a sign that no letter belongs to, as
# text may have no spaces. An apostrophe may begin a word, as in 's.
_BORDER = re.compile(r"(?<=\S)(?=[ \n]\S)|(?<=[^\s\w'])(?=[^\W_])")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with every byte in its alphabet, so that it encodes any text. The same texts give the same tokenizer.

    Raises ConfigError if vocab_size is too small for the bytes and the two control tokens.
    """
    if vocab_size < LEAST_VOCABULARY:
        raise ConfigError(
            f"tokenizer.vocab_size={vocab_size} is too small, as 256 bytes and 2 control tokens each need an id; "
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
    raw.train_from_iterator(chain.from_iterable(map(split_long_text, texts)), trainer)
    return Tokenizer(raw.to_str(pretty=True), {"bos_token": BOS, "eos_token": EOS}, "the trained tokenizer")


def iterate_training_texts(results: Results, slices: Sequence[Slice]) -> Iterator[str]:
    """Yield kept documents of the training side in source order; of a large source a share, chosen by content hash."""
    total = 0
    for piece in slices:
        scan = read_scan(results, piece)
        total += int(scan["utf8_bytes"][_is_trained_on(results, piece, scan)].sum())
    if total == 0:
        raise SourceError(
            "no document is left on the training side to train a tokenizer on; add text to the source, or for a dataset that is "
            "all validation write tokenizer.name=FOLDER with the tokenizer of the run that is evaluated on it"
        )
    share = min(1.0, SAMPLE_BYTES / total)
    for piece in slices:
        scan = read_scan(results, piece)
        chosen = _is_trained_on(results, piece, scan)
        if share < 1.0:
            chosen &= scan["content"][:, 1] < share * 2.0**64
        if chosen.any():
            documents = read_kept_documents(results, piece, chosen)
            yield from (document.text for document in documents if document.side == SPLITS.index("train"))


def _is_trained_on(results: Results, piece: Slice, scan: np.ndarray) -> np.ndarray:
    chosen: np.ndarray = read_keep(results, piece) & select_side(results, piece, scan, "train")
    return chosen


def split_long_text(text: str) -> Iterator[str]:
    """Pieces with the same words, as the library takes a hundred bytes of memory for each byte of a text."""
    text, start = _LONG_WORD.sub(lambda found: found[0][:1] if found[0].isspace() else "", text), 0
    while (border := _BORDER.search(text, start + PIECE_CHARS)) is not None:
        yield text[start : border.start()]
        start = border.start()
    yield text[start:]
