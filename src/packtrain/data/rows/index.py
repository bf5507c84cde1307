"""Decides how a long document index is read: a window or a few entries at a time, from mapped shards."""

import functools
from collections.abc import Iterator

import numpy as np

from packtrain.data.rows.gather import TokenStream
from packtrain.storage.mapped import check_length

# Documents that best-fit packs together, in about 100 MB of memory; more would pack no better. Other values give other rows.
WINDOW_DOCUMENTS = 2**20


class DocumentIndex:
    """The start and end of each document of a stream. Documents are numbered from 0."""

    def __init__(self, stream: TokenStream) -> None:
        self._documents = np.cumsum([0, *(shard.documents for shard in stream.shards)], dtype=np.int64)
        self._tokens = np.cumsum([0, *(shard.tokens for shard in stream.shards)], dtype=np.int64)
        # A mapped index needs a file descriptor.
        self._mapped_ends = functools.lru_cache(maxsize=64)(stream.shard_ends)

    def __len__(self) -> int:
        return int(self._documents[-1])

    def window(self, first: int, stop: int) -> np.ndarray:
        """Positions in the stream just after the documents first..stop - 1, int64[stop - first]."""
        out = np.empty(stop - first, dtype=np.int64)
        shard = int(np.searchsorted(self._documents, first, side="right")) - 1
        at = first
        while at < stop:
            origin, until = int(self._documents[shard]), min(stop, int(self._documents[shard + 1]))
            if until > at:
                ends = self._shard_ends(shard)[at - origin : until - origin]
                np.add(ends, self._tokens[shard], out=out[at - first : until - first])
            at, shard = until, shard + 1
        return out

    def windows(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """All documents, WINDOW_DOCUMENTS at a time: the number of the first, starts and lengths, int64[n] each."""
        start = 0
        for first in range(0, len(self), WINDOW_DOCUMENTS):
            ends = self.window(first, min(first + WINDOW_DOCUMENTS, len(self)))
            lengths = np.diff(ends, prepend=start)
            yield first, ends - lengths, lengths
            start = int(ends[-1])

    def ends(self, documents: np.ndarray) -> np.ndarray:
        """Position just after each document: int64[n] for int64[n]."""
        shard = np.searchsorted(self._documents, documents, side="right") - 1
        out = np.empty(len(documents), dtype=np.int64)
        for number in np.unique(shard).tolist():
            chosen = shard == number
            ends = self._shard_ends(number)[documents[chosen] - self._documents[number]]
            out[chosen] = ends + self._tokens[number]
        return out

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """Position of the first token of each document: int64[n] for int64[n]."""
        return np.where(documents > 0, self.ends(np.maximum(documents - 1, 0)), 0)

    def span(self, document: int) -> tuple[int, int]:
        """Position of a document's first token, and the position just after its last."""
        numbers = np.array([document], dtype=np.int64)
        return int(self.starts(numbers)[0]), int(self.ends(numbers)[0])

    def find(self, positions: np.ndarray) -> np.ndarray:
        """The document at each position of the stream: int64[n] for int64[n]."""
        shard = np.searchsorted(self._tokens, positions, side="right") - 1
        out = np.empty(len(positions), dtype=np.int64)
        for number in np.unique(shard).tolist():
            chosen = shard == number
            within = positions[chosen] - self._tokens[number]
            found = np.searchsorted(self._shard_ends(number), within, side="right")
            out[chosen] = found + self._documents[number]
        return out

    def _shard_ends(self, shard: int) -> np.ndarray:
        ends = self._mapped_ends(shard)
        check_length(ends)
        return ends
