"""Decides what a row is: which tokens are its targets, what comes before each of them, and where documents are separated.

B rows of a batch, T tokens of a row. Every token of the stream is a target of exactly one row; see
docs/decisions/0002-targets-partition-the-stream.md.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from packtrain.config.data import IGNORE_INDEX
from packtrain.data.rows.gather import Gather, TokenStream
from packtrain.data.rows.index import DocumentIndex
from packtrain.data.rows.order import invert, order_key, permute


class Layout(ABC):
    """Numbered rows of T targets, and the order in which a run sees them: a `RowPlan` of one dataset, or a `Mixture`."""

    seq_len: int
    num_rows: int
    num_targets: int
    """Tokens that are a target of some row."""
    hash: str
    manifest_hash: str
    """Of the dataset; of a mixture, of its datasets and their weights."""
    num_places: int | None = None
    """Rows that a run can see before the data ends, over all epochs; None if it never ends."""

    @abstractmethod
    def fill(self, rows: np.ndarray, *out: np.ndarray) -> None:
        """Write the given rows (int64[B]) into inputs and targets (int64[B, T]), and into segments and positions if given.

        Segments (int32[B, T]) and positions (int64[B, T]) keep documents apart: a segment is a document's part of the row,
        numbered from 0, and its positions start at 0. The input of a document's first target is then the boundary token.
        Padding is a segment of its own.
        """

    @abstractmethod
    def row_targets(self, rows: np.ndarray) -> np.ndarray:
        """How many positions of each row have a target: int64[B] for int64[B]. They come first in the row."""

    @abstractmethod
    def rows_at(self, places: np.ndarray, seed: int) -> np.ndarray:
        """The row at each place of a run: int64[n] for int64[n]. Places count the rows that the run sees, over epochs."""


@dataclass(frozen=True)
class Pieces:
    """Parts of the stream that make up a batch of rows, each int64[P], by row and then by offset; none is empty."""

    row: np.ndarray
    """Index into the batch."""
    offset: np.ndarray
    """First position in the row."""
    start: np.ndarray
    """Position of the first target in the stream."""
    length: np.ndarray
    before: np.ndarray
    """Position in the stream of the token that is the input of the first target; -1 if that is the boundary token."""


class Fragment(NamedTuple):
    """The part of a document that is in a row."""

    offset: int
    """First position in the row."""
    document: int
    start: int
    """First token, counted in the document."""
    length: int


class RowPlan(Layout):
    """Which targets make up each row of one dataset. Depends on the lengths of documents alone. Made by `pack.plan`."""

    packing: str

    def __init__(self, split: TokenStream, seq_len: int, like: "RowPlan | None" = None) -> None:
        """`like`: another plan of the same split, to read its files through the same maps."""
        self.split = split
        self.seq_len = seq_len
        self.manifest_hash = split.manifest_hash
        self.index: DocumentIndex = like.index if like else DocumentIndex(split)
        self._gather: Gather = like._gather if like else Gather(split)
        # Raise the version, here 1, when the same lengths would give other rows or another order.
        content = [1, split.manifest_hash, split.name, seq_len, self.packing]
        self.hash = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def fill(self, rows: np.ndarray, *out: np.ndarray) -> None:
        inputs, targets, *masks = out
        runs = self._runs(rows)
        ids = np.zeros(targets.shape, dtype=self.split.dtype)
        self._gather.copy(runs.start, runs.length, runs.row * self.seq_len + runs.offset, ids.reshape(-1))
        targets[...] = ids
        inputs[:, 1:] = ids[:, :-1]
        pieces = self._pieces(rows) if masks else runs
        inputs[pieces.row, pieces.offset] = self._predecessors(pieces)
        filled = self.row_targets(rows)
        for row in np.flatnonzero(filled < self.seq_len).tolist():
            targets[row, filled[row] :] = IGNORE_INDEX
            inputs[row, filled[row] :] = self.split.boundary_id
        if masks:
            segments, positions = masks
            _number_documents(pieces, filled, segments, positions)

    def of_epoch(self, _: int) -> "RowPlan":
        """The rows of an epoch, which are the same in each unless documents are packed again."""
        return self

    def first_row(self, _: int) -> int:
        """The number of the first row of an epoch."""
        return 0

    def rows_at(self, places: np.ndarray, seed: int) -> np.ndarray:
        epochs, index = np.divmod(places, self.num_rows)
        rows = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            rows[of_epoch] = permute(index[of_epoch], self.num_rows, order_key(seed, epoch, self.hash))
        return rows

    def places_in(self, epoch: int, rows: np.ndarray, seed: int) -> np.ndarray:
        """The place of each of these rows of `of_epoch(epoch)` if a run has no other data: int64[n] for int64[n]."""
        return epoch * self.num_rows + invert(rows, self.num_rows, order_key(seed, epoch, self.hash))

    def sources(self, row: int) -> list[Fragment]:
        """The parts of documents that are a row's targets, in order."""
        pieces = self._pieces(np.array([row], dtype=np.int64))
        documents = self.index.find(pieces.start)
        columns = (pieces.offset, documents, pieces.start - self.index.starts(documents), pieces.length)
        return [Fragment(*fields) for fields in zip(*(column.tolist() for column in columns), strict=True)]

    @cached_property
    def num_cut_documents(self) -> int:
        """Documents that are spread over more than one row."""
        return self._count_cut_documents()

    @abstractmethod
    def rows_of(self, document: int) -> list[int]:
        """The rows that have a document's tokens as targets, from its first token to its last."""

    @abstractmethod
    def _runs(self, rows: np.ndarray) -> Pieces:
        """What to read for each row if attention crosses documents."""

    @abstractmethod
    def _pieces(self, rows: np.ndarray) -> Pieces:
        """The parts of documents in each row."""

    @abstractmethod
    def _count_cut_documents(self) -> int: ...

    def _predecessors(self, pieces: Pieces) -> np.ndarray:
        """The input of each piece's first target."""
        before = np.full(len(pieces.start), self.split.boundary_id, dtype=np.int64)
        inside = np.flatnonzero(pieces.before >= 0)
        before[inside] = self._gather.at(pieces.before[inside])
        return before


def _number_documents(pieces: Pieces, filled: np.ndarray, segments: np.ndarray, positions: np.ndarray) -> None:
    seq_len = segments.shape[1]
    short = np.flatnonzero(filled < seq_len)
    row = np.concatenate([pieces.row, short])
    offset = np.concatenate([pieces.offset, filled[short]])
    positions[...] = 0
    positions[row, offset] = offset
    np.greater(positions, 0, out=segments, casting="unsafe")
    np.cumsum(segments, axis=1, out=segments)
    np.maximum.accumulate(positions, axis=1, out=positions)
    np.subtract(np.arange(seq_len), positions, out=positions)
