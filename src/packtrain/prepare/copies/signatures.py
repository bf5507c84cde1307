"""Decides how near copies are recognized without their text: by MinHash signatures of word n-grams."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from packtrain.config.recipe import DedupConfig
from packtrain.errors import ConfigError

# A word is a run of at most 64 letters and digits. In scripts without spaces between words (Thai, Lao, Burmese, Khmer, kana,
# Chinese), each character is a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]{{1,64}}")
_SEED = 1
# The n-grams of a long document are made and dropped this many words at a time.
_RUN_WORDS = 1 << 16


def make_signer(config: DedupConfig) -> Callable[[str], np.ndarray]:
    """The function that computes a document's signature, uint32[near_bands * near_band_rows].

    The share of equal entries in two signatures estimates the Jaccard similarity of the documents' sets of word n-grams
    (Broder 1997), ignoring case, punctuation and spacing. A document with fewer words than n is a single n-gram. Raises
    ConfigError if rensa is not installed.
    """
    minhash = _import_rensa().RMinHash
    permutations = config.near_bands * config.near_band_rows

    def sign(text: str) -> np.ndarray:
        sketch = minhash(permutations, _SEED)
        for run in _ngrams(text, config.near_words):
            sketch.update(run)
        return np.array(sketch.digest(), dtype=np.uint32)

    return sign


def algorithm_version() -> int:
    """The version of the library's signatures. Raises ConfigError if it is not installed."""
    version: int = _import_rensa().RMinHash.ALGORITHM_VERSION
    return version


def pack_signatures(signatures: Sequence[np.ndarray], config: DedupConfig) -> bytes:
    """A slice's signatures as a file: a hash of each band, uint64[bands, n], then low halves, uint16[n, bands * rows].

    Halves are enough for the estimate: the halves of unequal entries are equal only once in 65,536 times.
    """
    count = len(signatures)
    table = np.array(signatures, dtype="<u4").reshape(count, config.near_bands, config.near_band_rows)
    keys = np.array([xxhash.xxh3_64_intdigest(band) for row in table for band in row], dtype="<u8")
    halves = (table & np.uint32(0xFFFF)).astype("<u2")
    return keys.reshape(count, config.near_bands).T.tobytes() + halves.tobytes()


class Signatures:
    """Reads the files of `pack_signatures` in parts; documents are numbered over all slices."""

    def __init__(self, paths: Sequence[Path], config: DedupConfig) -> None:
        self._paths = paths
        self._bands, self._width = config.near_bands, config.near_bands * config.near_band_rows
        self._counts = [path.stat().st_size // document_bytes(config) for path in paths]
        self._starts = np.cumsum([0, *self._counts])

    def read_band(self, number: int) -> Iterator[np.ndarray]:
        """Yield the hashes of one band of every document, slice by slice."""
        for path, count in zip(self._paths, self._counts, strict=True):
            yield np.fromfile(path, "<u8", count, offset=8 * number * count)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """The signatures of these documents, uint16[n, width]. Sorts its reads, and keeps no file mapped."""
        numbers = numbers.astype(np.int64)
        taken = np.empty((len(numbers), self._width), dtype=np.uint16)
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], self._starts[1:])
        start = 0
        for index in np.flatnonzero(np.diff(ends, prepend=0)).tolist():
            wanted = order[start : ends[index]]
            start = ends[index]
            count = self._counts[index]
            offset = 8 * self._bands * count
            table = np.memmap(self._paths[index], "<u2", "r", offset, (count, self._width))
            taken[wanted] = table[numbers[wanted] - self._starts[index]]
        return taken


def document_bytes(config: DedupConfig) -> int:
    """The bytes of a document in a file of `pack_signatures`."""
    return config.near_bands * (8 + 2 * config.near_band_rows)


def _ngrams(text: str, size: int) -> Iterator[list[str]]:
    words = (match.group() for match in _WORD.finditer(text.casefold()))
    run = list(islice(words, _RUN_WORDS))
    if len(run) < size:
        # A text without words only resembles itself.
        yield [" ".join(run) or text]
        return
    while len(run) >= size:
        yield list(map(" ".join, zip(*(run[i:] for i in range(size)), strict=False)))
        run = run[len(run) - size + 1 :] + list(islice(words, _RUN_WORDS))


def _import_rensa() -> Any:
    try:
        import rensa
    except ImportError:
        raise ConfigError(
            "dedup.near=true needs rensa, which is not installed; run pip install 'packtrain[near]', or write dedup.near=false"
        ) from None
    return rensa
