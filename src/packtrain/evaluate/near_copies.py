"""Decides how much of a dataset's held-out text the training text has too, so that a low loss is not taken for more than it is."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from packtrain.data.format.shards import Dataset
from packtrain.data.rows.index import DocumentIndex
from packtrain.data.tokens.tokenizer import Tokenizer

# As dedup.near has them (FineWeb, arXiv 2406.17557), but compared whole instead of by signatures: this is for small datasets.
WORDS = 5
THRESHOLD = 0.75
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class NearCopies:
    """Held-out documents of which a training document has most, and what is in both sides anyway."""

    documents: int
    """Held-out documents."""
    copies: int
    """Those that have THRESHOLD or more of their runs of words in common with one training document (Jaccard similarity)."""
    num_bytes: int
    """UTF-8 bytes of the held-out documents."""
    copied_bytes: int
    """Those of the copies."""
    shared: float
    """Share of the held-out documents' different runs of words that any training document has: licences, boilerplate, idioms."""


def count_near_copies(dataset: Dataset, tokenizer: Tokenizer) -> NearCopies:
    """Compares each held-out document with each training document, by their runs of five words, case ignored.

    Reads and decodes the whole dataset: a few seconds for 10 MB. Memory: about 100 bytes for each held-out word.
    """
    held, sizes = [], []
    for text in _read_texts(dataset, "validation", tokenizer):
        held.append(_runs(text))
        sizes.append(len(text.encode()))
    owners: dict[int, list[int]] = defaultdict(list)
    for number, runs in enumerate(held):
        for run in runs:
            owners[run].append(number)
    is_copy, seen = [False] * len(held), set()
    for text in _read_texts(dataset, "train", tokenizer):
        runs = _runs(text)
        common = runs & owners.keys()
        seen |= common
        counts = Counter(number for run in common for number in owners[run])
        for number, count in counts.items():
            is_copy[number] |= count >= THRESHOLD * (len(runs) + len(held[number]) - count)
    copied = sum(size for size, is_one in zip(sizes, is_copy, strict=True) if is_one)
    return NearCopies(len(held), sum(is_copy), sum(sizes), copied, len(seen) / len(owners) if owners else 0.0)


def describe_near_copies(found: NearCopies) -> str:
    """One sentence for people."""
    share = found.copied_bytes / found.num_bytes if found.num_bytes else 0.0
    return (
        f"{found.copies:,} of {found.documents:,} held-out documents, {share:.1%} of their bytes, are near-copies of a training "
        f"document; training has {found.shared:.1%} of the held-out runs of {WORDS} words"
    )


def _read_texts(dataset: Dataset, side: str, tokenizer: Tokenizer) -> Iterator[str]:
    split = dataset.split(side)  # type: ignore[arg-type]
    index = DocumentIndex(split)
    numbers = np.arange(len(index))
    for start, end in zip(index.starts(numbers).tolist(), index.ends(numbers).tolist(), strict=True):
        yield tokenizer.decode(split.read(start, end).tolist())


def _runs(text: str) -> set[int]:
    """Hashes of the runs of five words; of the whole text if it has fewer."""
    words = _WORD.findall(text.casefold())
    if len(words) < WORDS:
        return {hash(text)}
    return {hash(run) for run in zip(*(words[first:] for first in range(WORDS)), strict=False)}
