"""Decides what is recorded of the lengths of documents: how many have each size, and how many exceed a row."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

SEQ_LENS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Sequence lengths for which the share of longer documents is counted."""


class Lengths(NamedTuple):
    """Kept documents by power of two, and for each of SEQ_LENS the documents and tokens of the longer ones."""

    histogram: dict[str, int]
    longer_than: dict[str, dict[str, int]]


def count_lengths(lengths: Sequence[npt.NDArray[Any]]) -> dict[str, int]:
    """Documents by length in tokens, in bins that begin at powers of two (0 is a bin of its own)."""
    counts: dict[int, int] = {}
    for part in lengths:
        exponents = np.frexp(part.astype(np.float64))[1]  # frexp(n)[1] - 1 is the floor of log2(n)
        for exponent, count in zip(*np.unique(exponents, return_counts=True), strict=True):
            least = 0 if exponent == 0 else 1 << (int(exponent) - 1)
            counts[least] = counts.get(least, 0) + int(count)
    return {str(least): counts[least] for least in sorted(counts)}


def count_longer(lengths: Sequence[npt.NDArray[Any]]) -> dict[str, list[int]]:
    """For each of SEQ_LENS, how many documents are longer, and how many tokens those have: [documents, tokens]."""
    counts = {}
    for seq_len in SEQ_LENS:
        longer = [part[part > seq_len] for part in lengths]
        counts[str(seq_len)] = [sum(len(part) for part in longer), sum(int(part.sum()) for part in longer)]
    return counts


def merge_lengths(records: Iterable[Mapping[str, Any]]) -> Lengths:
    """The sum over slices of `lengths` and `longer` in their records."""
    histogram: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for record in records:
        histogram.update(record["lengths"])
        for seq_len, (longer, their_tokens) in record["longer"].items():
            documents[seq_len] += longer
            tokens[seq_len] += their_tokens
    longer_than = {str(s): {"documents": documents[str(s)], "tokens": tokens[str(s)]} for s in SEQ_LENS}
    return Lengths({least: histogram[least] for least in sorted(histogram, key=int)}, longer_than)
