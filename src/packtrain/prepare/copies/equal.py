"""Decides which of several equal documents stays: the first in source order."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from packtrain.storage.buckets import Buckets

# A document in a bucket: its content hash, and its number in source order.
ENTRY = np.dtype([("content", "<u8", (2,)), ("number", "<u8")])
_SEEN = np.dtype([("content", "<u8", (2,)), ("number", "<u8"), ("copies", "<u8")])


def add_documents(buckets: Buckets, contents: npt.NDArray[np.uint64], first_number: int) -> None:
    """Put documents with content hashes uint64[n, 2] into the buckets, numbered from `first_number` on."""
    entries = np.empty(len(contents), dtype=ENTRY)
    entries["content"] = contents
    entries["number"] = np.arange(first_number, first_number + len(contents))
    buckets.add(entries["content"][:, 0], entries)


def mark_copies(buckets: Buckets, is_copy: npt.NDArray[np.bool_]) -> dict[int, int]:
    """Set `is_copy`, bool[documents], for content seen before; returns how many groups of equal documents have each size.

    `buckets` hold what `add_documents` put there in source order. Takes memory for the distinct contents of one bucket,
    however often they repeat.
    """
    sizes: Counter[int] = Counter()
    for bucket in buckets:
        for size, groups in zip(*np.unique(_mark_bucket(bucket, is_copy), return_counts=True), strict=True):
            sizes[int(size)] += int(groups)
    return dict(sorted(sizes.items()))


def _mark_bucket(chunks: Iterable[npt.NDArray[Any]], is_copy: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Mark the copies in one bucket; returns the sizes of its groups. Earlier chunks are sorted before later ones."""
    seen = np.empty(0, dtype=_SEEN)
    for chunk in chunks:
        known = len(seen)
        merged = np.empty(known + len(chunk), dtype=_SEEN)
        merged[:known] = seen
        merged["content"][known:], merged["number"][known:] = chunk["content"], chunk["number"]
        merged["copies"][known:] = 1
        # Stable: equal hashes keep their source order.
        merged = merged[np.lexsort((merged["content"][:, 1], merged["content"][:, 0]))]
        is_new = np.ones(len(merged), dtype=np.bool_)
        is_new[1:] = (merged["content"][1:] != merged["content"][:-1]).any(axis=1)
        is_copy[merged["number"][~is_new]] = True
        seen = merged[is_new]
        seen["copies"] = np.add.reduceat(merged["copies"], np.flatnonzero(is_new))
    return seen["copies"]


def expect_random_split_leak(group_sizes: dict[int, int], fraction: float) -> float:
    """The expected share of a random validation split that has a copy in training.

    A document in a group of m copies has the m - 1 others in validation too with probability fraction^(m - 1).
    """
    documents = sum(size * groups for size, groups in group_sizes.items())
    leaked = sum(size * groups * (1.0 - fraction ** (size - 1)) for size, groups in group_sizes.items())
    return leaked / documents if documents else 0.0
