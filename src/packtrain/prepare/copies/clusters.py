"""Decides which documents are near copies: all but the first of each cluster of similar signatures."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from packtrain.config.recipe import DedupConfig
from packtrain.prepare.copies.signatures import Signatures
from packtrain.storage.buckets import Buckets

LINK = np.dtype([("key", "<u8"), ("number", "<u8")])
_PAIRS = 1 << 17

Alike = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mark_near_copies(signatures: Signatures, is_copy: np.ndarray, config: DedupConfig, folder: Path) -> np.ndarray:
    """For each document the first of its cluster in source order, integers[documents]; itself if it is not a near copy.

    Banded locality-sensitive hashing (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4): documents with a band
    in common are compared by their whole signatures and joined if the similarity is `near_threshold` or more; a cluster is
    everything that pairs connect. Documents marked in `is_copy` are ignored. One band at a time is sorted on disk, in
    `folder`. Takes 4 bytes of memory for each document, 8 beyond four billion.
    """
    forest = _Forest(len(is_copy))

    def join_if_alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        alike = forest.find_roots(one) == forest.find_roots(other)
        unknown = np.flatnonzero(~alike)
        for start in range(0, len(unknown), _PAIRS):
            part = unknown[start : start + _PAIRS]
            alike[part] = estimate_similarity(signatures, one[part], other[part]) >= config.near_threshold
        found = unknown[alike[unknown]]
        forest.join(one[found], other[found])
        return alike

    for band in range(config.near_bands):
        with Buckets(folder, LINK, int(len(is_copy) - is_copy.sum())) as buckets:
            start = 0
            for keys in signatures.read_band(band):
                links = np.empty(len(keys), dtype=LINK)
                links["key"], links["number"] = keys, np.arange(start, start + len(keys))
                wanted = ~is_copy[start : start + len(keys)]
                buckets.add(keys[wanted], links[wanted])
                start += len(keys)
            for bucket in buckets:
                _join_bucket(bucket, join_if_alike)
    return forest.flatten()


def keep_within_sides(first: np.ndarray, is_copy: np.ndarray, is_held: np.ndarray, *, keep_leaks: bool) -> None:
    """Change `first`, from `mark_near_copies`, for sides that are given: `is_held`, bool[documents], is true in validation.

    A validation document gets the first validation document of its cluster. A training document gets that one too if there
    is one, so that it leaves; with `keep_leaks`, it gets the first training document of its cluster.
    """
    held = np.flatnonzero(is_held & ~is_copy)
    trained = np.flatnonzero(~is_held & ~is_copy)
    roots, at = np.unique(first[held], return_index=True)
    stays = held[at]
    if keep_leaks:
        _, at, which = np.unique(first[trained], return_index=True, return_inverse=True)
        first[trained] = trained[at][which]
    elif len(roots):
        place = np.minimum(np.searchsorted(roots, first[trained]), len(roots) - 1)
        is_near = roots[place] == first[trained]
        first[trained[is_near]] = stays[place[is_near]]
    first[held] = stays[np.searchsorted(roots, first[held])]


def estimate_similarity(signatures: Signatures, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of pairs of documents, float64[n]; its standard deviation is sqrt(j (1 - j) / entries)."""
    equal = signatures.take(one) == signatures.take(other)
    return equal.mean(axis=1)


def find_least_alike(signatures: Signatures, first: np.ndarray, near: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Yield up to three (near copy, the document kept for it, estimated similarity): the least alike of a thousand or so."""
    if len(near) > 1024:
        near = near[np.linspace(0, len(near) - 1, 1024).astype(np.int64)]
    likeness = estimate_similarity(signatures, near, first[near])
    for index in np.argsort(likeness, kind="stable")[:3]:
        yield int(near[index]), int(first[near[index]]), float(likeness[index])


def _join_bucket(chunks: Iterable[np.ndarray], join_if_alike: Alike) -> None:
    """Compare documents of equal key with the first of them, the ones unlike it with the first of these, and so on."""
    leaders = np.empty(0, dtype=LINK)
    for chunk in chunks:
        links = np.concatenate([leaders, chunk])
        links = links[np.argsort(links["key"], kind="stable")]
        is_leader = np.zeros(len(links), dtype=np.bool_)
        rest = np.arange(len(links))
        # A document is compared with at most 16 earlier ones for each band.
        for _ in range(16):
            keys = links["key"][rest]
            is_first = np.ones(len(rest), dtype=np.bool_)
            is_first[1:] = keys[1:] != keys[:-1]
            is_leader[rest[is_first]] = True
            leader_of = rest[is_first][np.cumsum(is_first) - 1][~is_first]
            rest = rest[~is_first]
            if not len(rest):
                break
            rest = rest[~join_if_alike(links["number"][leader_of], links["number"][rest])]
        leaders = links[is_leader]


class _Forest:
    """Disjoint sets of numbers, joined by many pairs at once; the root of a set is its least number."""

    def __init__(self, count: int) -> None:
        self._parent: np.ndarray = np.arange(count, dtype=np.uint32 if count <= 1 << 32 else np.uint64)

    def find_roots(self, numbers: np.ndarray) -> np.ndarray:
        """The root of each number."""
        found = self._parent[numbers]
        while ((above := self._parent[found]) != found).any():
            found = above
        self._parent[numbers] = found
        return found

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Join the two sets of each pair."""
        while len(one):
            one, other = self.find_roots(one), self.find_roots(other)
            apart = one != other
            one, other = one[apart], other[apart]
            higher = np.maximum(one, other)
            np.minimum.at(self._parent, higher, np.minimum(one, other))
            # A long chain of pairs makes a long path; each pass halves it.
            while ((above := self._parent[self._parent[higher]]) != self._parent[higher]).any():
                self._parent[higher] = above

    def flatten(self) -> np.ndarray:
        """The root of every number."""
        for start in range(0, len(self._parent), 1 << 22):
            part = np.arange(start, min(start + (1 << 22), len(self._parent)))
            self._parent[part] = self.find_roots(part)
        return self._parent
