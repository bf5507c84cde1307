"""Decides what a model is compared with: token statistics and general compressors on the same held-out documents.

All figures are bits per byte of UTF-8 text. What each one sees:

- The model is measured on chosen rows, or on documents by themselves. It sees the tokens before the target in its row or
  document, and it was trained on training text. It must also predict control tokens (BOS, EOS), which stand for no byte.
- `uniform`, `unigram` and `bigram` predict exactly the same targets, including control tokens. To `uniform` every token is as
  likely. The other two have seen training text: counts of up to `MAX_COUNTED_TOKENS` tokens, spread evenly over the training
  split. The bigram also sees one token before the target, the one that the model has as its input there.
- `zlib -9`, `xz -9` and `zstd -19` have seen no training text. They get every document that a chosen row touches, in full,
  even if the rows hold only a part of it. They have two advantages: more context than a row gives, and they need not say where
  a document ends. zlib compresses the documents separately and as one stream, and the better result counts; xz and zstd
  compress one stream. Headers and checksums do not count.

If the chosen rows are all rows of the split, or documents are scored by themselves, all of them see the same documents, byte
for byte.
"""

import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import zstandard

from packtrain.config.data import IGNORE_INDEX
from packtrain.data.feed.loader import read_rows
from packtrain.data.rows.gather import TokenStream
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.evaluate.documents import Document
from packtrain.evaluate.loss import HeldOut

MAX_COUNTED_TOKENS = 2**24
_NUM_WINDOWS = 256
_ROWS_PER_READ = 1024


@dataclass(frozen=True)
class Yardstick:
    """The result of a simpler method on the held-out documents, and what that method sees."""

    name: str
    bits_per_byte: float
    sees: str


@dataclass(frozen=True)
class CountedText:
    """Tokens of the training split that statistics are counted on: int64[n] each, and what they are for people."""

    parts: list[np.ndarray]
    words: str


def measure_yardsticks(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    texts: Iterable[bytes],
    num_bytes: int,
    counted: CountedText | None,
    vocab_size: int,
) -> list[Yardstick]:
    """Uniform, unigram, bigram, zlib, xz and zstd on the same text; without a sample to count, unigram and bigram are left out.

    `pairs` are the model's inputs and targets, int64[n] each; an input of -1 is none. `texts` are the documents. Takes up to ten
    seconds for the counts and about a second per MB of text.
    """
    per_byte = 1 / math.log(2) / num_bytes if num_bytes else math.nan
    sample = counted or CountedText([np.zeros(0, dtype=np.int64)], "")
    uniform_nats, unigram_nats, bigram_nats = token_statistics(pairs, sample.parts, vocab_size)
    found = [Yardstick("uniform", uniform_nats * per_byte, f"nothing; {vocab_size:,} tokens, each as likely")]
    if counted is not None:
        found += [
            Yardstick("unigram", unigram_nats * per_byte, f"token frequencies of {sample.words}"),
            Yardstick("bigram", bigram_nats * per_byte, f"one token before; token pairs of {sample.words}"),
        ]
    return [*found, *compress(texts)]


def sample_training(train: TokenStream) -> CountedText | None:
    """What to count of a training split; None if it is empty."""
    if not train.num_tokens:
        return None
    parts = sample_stream(train, MAX_COUNTED_TOKENS)
    num_counted = sum(map(len, parts))
    is_all = num_counted == train.num_tokens
    return CountedText(parts, "the training split" if is_all else f"{num_counted:,} tokens of the training split")


def token_statistics(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], counted: list[np.ndarray], vocab_size: int
) -> tuple[float, float, float]:
    """Cross-entropy in nats, summed over the targets of `pairs`, of a uniform, a unigram and a bigram model.

    Unigram: counts with one added to each. Bigram: Witten-Bell smoothing (Chen and Goodman 1996, equation 6) over that
    unigram: after a token seen n times, before d different ones, the unigram weighs d / (n + d).
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for part in counted:
        counts += np.bincount(part, minlength=vocab_size)
    unigram = (counts + 1) / (counts.sum() + vocab_size)
    keys_seen, pair_counts = _count_pairs(counted, vocab_size)
    followed = np.bincount(keys_seen // vocab_size, weights=pair_counts, minlength=vocab_size)
    different = np.bincount(keys_seen // vocab_size, minlength=vocab_size)

    num_targets, unigram_nats, bigram_nats = 0, 0.0, 0.0
    for inputs, targets in pairs:
        num_targets += len(targets)
        p_unigram = unigram[targets]
        unigram_nats -= float(np.log(p_unigram).sum())
        keys = inputs * vocab_size + targets
        at = np.minimum(np.searchsorted(keys_seen, keys), len(keys_seen) - 1)
        seen = np.where(keys_seen[at] == keys, pair_counts[at], 0) if len(keys_seen) else np.zeros(len(keys))
        n, d = (np.where(inputs >= 0, column[inputs], 0) for column in (followed, different))
        p_bigram = np.where(n > 0, (seen + d * p_unigram) / np.maximum(n + d, 1), p_unigram)
        bigram_nats -= float(np.log(p_bigram).sum())
    return num_targets * math.log(vocab_size), unigram_nats, bigram_nats


def compress(texts: Iterable[bytes]) -> list[Yardstick]:
    """zlib level 9, xz preset 9 and zstd level 19 over the documents, in bits per byte."""
    stream, xz, zstd = _deflate(), lzma.LZMACompressor(lzma.FORMAT_RAW, filters=_XZ), _zstd()
    num_bytes = streamed = one_by_one = xz_bytes = zstd_bytes = 0
    for text in texts:
        alone = _deflate()
        num_bytes += len(text)
        streamed += len(stream.compress(text))
        one_by_one += len(alone.compress(text)) + len(alone.flush())
        xz_bytes += len(xz.compress(text))
        zstd_bytes += len(zstd.compress(text))
    streamed += len(stream.flush())
    xz_bytes += len(xz.flush())
    zstd_bytes += len(zstd.flush())
    manner = _AS_ONE_STREAM if streamed <= one_by_one else "each document separately"
    per_byte = 8 / num_bytes if num_bytes else math.nan
    return [
        Yardstick("zlib -9", min(streamed, one_by_one) * per_byte, f"the 32 KiB before; {manner}"),
        Yardstick("xz -9", xz_bytes * per_byte, f"the {_WINDOW >> 20} MiB before; {_AS_ONE_STREAM}"),
        Yardstick("zstd -19", zstd_bytes * per_byte, f"the {_WINDOW >> 20} MiB before; {_AS_ONE_STREAM}"),
    ]


def document_texts(
    held_out: HeldOut, tokenizer: Tokenizer, on_progress: Callable[[int, int], None] | None = None
) -> Iterator[bytes]:
    """The full text, as UTF-8, of every document that a held-out row touches, in stream order."""
    plan = held_out.plan
    documents = sorted({piece.document for row in held_out.rows.tolist() for piece in plan.sources(row)})
    for done, document in enumerate(documents, start=1):
        yield tokenizer.decode(plan.split.read(*plan.index.span(document)).tolist()).encode()
        if on_progress is not None:
            on_progress(done, len(documents))


def sample_stream(stream: TokenStream, max_tokens: int) -> list[np.ndarray]:
    """The whole stream, or windows spread evenly over it with `max_tokens` in all; ids as int64[n] each."""
    if stream.num_tokens <= max_tokens:
        return [np.asarray(stream.read(0, stream.num_tokens), dtype=np.int64)]
    length = max_tokens // _NUM_WINDOWS
    starts = np.linspace(0, stream.num_tokens - length, _NUM_WINDOWS).astype(np.int64).tolist()
    return [np.asarray(stream.read(start, start + length), dtype=np.int64) for start in starts]


def _count_pairs(counted: list[np.ndarray], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Adjacent tokens as `first * vocab_size + second`, ascending, and how often each pair occurs."""
    keys = np.concatenate([part[:-1] * vocab_size + part[1:] for part in counted])
    return np.unique(keys, return_counts=True)


def pairs_of_rows(held_out: HeldOut) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of the rows, int64[n] each."""
    for first in range(0, len(held_out.rows), _ROWS_PER_READ):
        rows = read_rows(held_out.plan, held_out.rows[first : first + _ROWS_PER_READ])
        inputs, targets = rows.inputs_BT.numpy(), rows.targets_BT.numpy()
        is_target = targets != IGNORE_INDEX
        yield inputs[is_target], targets[is_target]


def pairs_of_documents(documents: Iterable[Document]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of documents that are scored by themselves, int64[n] each; -1 is the input where there is none."""
    for document in documents:
        before = -1 if document.start is None else document.start
        yield np.concatenate([[before], document.ids[:-1]])[: len(document.ids)], document.ids


def _zstd() -> "zstandard.ZstdCompressionObj":
    window = _WINDOW.bit_length() - 1
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=window, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False, write_checksum=False
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compressobj()


def _deflate() -> "zlib._Compress":
    # Negative window bits: no header and no checksum. The last 9: as much memory as zlib can use.
    return zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)


_AS_ONE_STREAM = "the documents as one stream"
# Preset 9 has a window of 64 MiB, which takes 674 MiB of memory and helps only with text longer than 16 MiB.
_WINDOW = 16 << 20
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": _WINDOW}]
