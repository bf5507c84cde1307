"""Decides which of several equal documents stays: the first in source order."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_BUCKET_DOCUMENTS = 1 << 22


class Copies(NamedTuple):
    """Which documents are the first of their content, bool[N], and how many groups there are of each size."""

    first: npt.NDArray[np.bool_]
    group_sizes: dict[int, int]


def find_copies(hashes: npt.NDArray[np.uint64]) -> Copies:
    """Find equal rows of 128-bit hashes, uint64[N, 2], in source order.

    Takes 17 bytes a document beside the hashes' own and some 200 MB: documents are looked at by buckets of their leading
    bits, so the sort of a hundred million never exists whole.
    """
    count = len(hashes)
    first = np.zeros(count, dtype=np.bool_)
    sizes: dict[int, int] = {}
    bits = max(0, (max(1, count) // _BUCKET_DOCUMENTS)).bit_length()
    bucket_of: npt.NDArray[Any] = (
        (hashes[:, 0] >> np.uint64(64 - bits)).astype(np.uint16) if bits else np.zeros(count, np.uint16)
    )
    for bucket in range(1 << bits):
        members = np.flatnonzero(bucket_of == bucket)
        if not len(members):
            continue
        keys = hashes[members]
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal hashes stay in source order
        ordered = keys[order]
        is_new = np.ones(len(order), dtype=np.bool_)
        is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        first[members[order[is_new]]] = True
        starts = np.flatnonzero(is_new)
        for size, groups in zip(*np.unique(np.diff([*starts, len(order)]), return_counts=True), strict=True):
            sizes[int(size)] = sizes.get(int(size), 0) + int(groups)
    return Copies(first, dict(sorted(sizes.items())))


def random_split_leak(group_sizes: dict[int, int], fraction: float) -> float:
    """Expected share of a random validation split that has a copy in training.

    A document of a group of m copies has all m - 1 others in validation too with probability fraction^(m - 1).
    """
    documents = sum(size * groups for size, groups in group_sizes.items())
    leaked = sum(size * groups * (1.0 - fraction ** (size - 1)) for size, groups in group_sizes.items())
    return leaked / documents if documents else 0.0
