"""Decides what is kept of the lengths of documents: how many there are of each size, and what exceeds a row."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

SEQ_LENS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Sequence lengths for which the share of longer documents is counted."""


class Lengths(NamedTuple):
    """Of all kept documents: how many there are by power of two, and, by sequence length, documents and tokens of the longer."""

    histogram: dict[str, int]
    longer_than: dict[str, dict[str, int]]


def length_histogram(lengths: Sequence[npt.NDArray[Any]]) -> dict[str, int]:
    """Documents by length in tokens, in bins that begin at powers of two (0 apart)."""
    counts: dict[int, int] = {}
    for part in lengths:
        exponents = np.frexp(part.astype(np.float64))[1]  # frexp(n)[1] - 1 is the floor of log2(n)
        for exponent, count in zip(*np.unique(exponents, return_counts=True), strict=True):
            least = 0 if exponent == 0 else 1 << (int(exponent) - 1)
            counts[least] = counts.get(least, 0) + int(count)
    return {str(least): counts[least] for least in sorted(counts)}


def longer_than(lengths: Sequence[npt.NDArray[Any]]) -> dict[str, list[int]]:
    """For each of SEQ_LENS, how many documents have more tokens than it, and how many tokens those have: [documents, tokens]."""
    counts = {}
    for seq_len in SEQ_LENS:
        longer = [part[part > seq_len] for part in lengths]
        counts[str(seq_len)] = [sum(len(part) for part in longer), sum(int(part.sum()) for part in longer)]
    return counts


def merge(records: Iterable[Mapping[str, Any]]) -> Lengths:
    """Sum over slices, of what their records hold under `lengths` and `longer`."""
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
