"""Decides what a row is: which tokens are its targets, what stands before each of them, and where documents part.

B rows of a batch, T tokens of a row. Every token of the stream is a target of exactly one row; see
docs/decisions/0002-targets-partition-the-stream.md.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from packtrain.config.data import IGNORE_INDEX
from packtrain.data.rows.gather import Gather, TokenStream
from packtrain.data.rows.index import DocumentIndex
from packtrain.data.rows.order import order_key, permute


class Layout(ABC):
    """Numbered rows of T targets: a `Plan` over one dataset, or a `Mixture` of several plans.

    B rows of a batch, T tokens of a row, n places of a run: place p is the p-th row that it sees, from 0, over all ranks.
    """

    seq_len: int
    num_rows: int
    num_targets: int
    """Tokens that are a target of some row; each is one once."""
    hash: str
    manifest_hash: str
    """Of the dataset; of a mixture, over those of its datasets and their weights."""
    num_places: int | None = None
    """Rows that a run can see before the data ends; None where it never ends."""

    @property
    @abstractmethod
    def parts(self) -> "Sequence[RowPlan]":
        """The plans of the datasets, whose rows are numbered one plan after the other."""

    @abstractmethod
    def fill(
        self,
        rows: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray,
        segments: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> None:
        """Write the given rows (int64[B]) into inputs and targets (int64[B, T]).

        With segments (int32[B, T]) and positions (int64[B, T]), which go together, documents are kept apart: a segment
        is a document's stretch of the row, numbered from 0, its positions start at 0, and the input of a document's
        first target is the boundary token. Padding is a segment of its own.
        """

    @abstractmethod
    def row_targets(self, rows: np.ndarray) -> np.ndarray:
        """How many positions of each row have a target: int64[B] for int64[B]; they come first in the row."""

    @abstractmethod
    def rows_at(self, places: np.ndarray, seed: int) -> np.ndarray:
        """The row at each place of the run that `seed` orders: int64[n] for int64[n], each below num_places."""

    @abstractmethod
    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which part each row belongs to, and its number in that plan: int64[B] each."""

    @abstractmethod
    def places_of(self, part: int, seen: np.ndarray) -> np.ndarray:
        """The place at which a run has seen `seen` rows of a part before: int64[n] for int64[n]; -1 where it is used up."""

    @abstractmethod
    def seen_by(self, part: int, place: int) -> int:
        """How many of the places before `place` are a part's."""

    def first_row(self, part: int) -> int:
        """Number of the first row of a part."""
        return sum(plan.num_rows for plan in self.parts[:part])

    @property
    def num_padded(self) -> int:
        """Positions without a target."""
        return self.num_rows * self.seq_len - self.num_targets

    def summary(self) -> dict[str, int | str]:
        """What becomes of the tokens, for people and for the ledger."""
        parts = self.parts
        return {
            "packing": parts[0].packing,
            "seq_len": self.seq_len,
            "rows": self.num_rows,
            "documents": sum(len(plan.index) for plan in parts),
            "targets": self.num_targets,
            "padded": self.num_padded,
            "dropped": sum(plan.num_dropped for plan in parts),
            "cut_documents": sum(plan.num_cut_documents for plan in parts),
            "hash": self.hash,
        }


# Part of every plan's hash: raise it when the same lengths would give other rows or another order.
PLAN_VERSION = 1


@dataclass(frozen=True)
class Pieces:
    """Stretches of the stream in a batch of rows, each int64[P], by row and then by offset; none is empty."""

    row: np.ndarray
    """Index into the batch."""
    offset: np.ndarray
    """First position in the row."""
    start: np.ndarray
    """Position in the stream of the first target."""
    length: np.ndarray
    begins: np.ndarray
    """bool[P]: nothing stands before the first target, so that its input is the boundary token."""


class Fragment(NamedTuple):
    """A stretch of one document in a row."""

    offset: int
    """First position in the row."""
    document: int
    start: int
    """First token, counted in the document."""
    length: int


class RowPlan(Layout):
    """Which targets make up each row; depends on document lengths alone. Made by `data.pack.plan`."""

    packing: str

    def __init__(self, split: TokenStream, seq_len: int) -> None:
        self.split = split
        self.seq_len = seq_len
        self.manifest_hash = split.manifest_hash
        self.index = DocumentIndex(split)
        self._gather = Gather(split)
        content = [PLAN_VERSION, split.manifest_hash, split.name, seq_len, self.packing]
        self.hash = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    @property
    def parts(self) -> Sequence["RowPlan"]:
        return (self,)

    @property
    def num_dropped(self) -> int:
        """Tokens of the split that are no target: zero, or the plan is wrong."""
        return self.split.num_tokens - self.num_targets

    @cached_property
    def num_cut_documents(self) -> int:
        """Documents that do not lie in one row."""
        return self._count_cut_documents()

    def fill(
        self,
        rows: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray,
        segments: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> None:
        assert (segments is None) == (positions is None), "segments and positions go together"
        runs = self._runs(rows)
        ids = np.zeros(targets.shape, dtype=self.split.dtype)
        self._gather.copy(runs.start, runs.length, runs.row * self.seq_len + runs.offset, ids.reshape(-1))
        targets[...] = ids
        inputs[:, 1:] = ids[:, :-1]
        pieces = runs if segments is None else self._pieces(rows)
        inputs[pieces.row, pieces.offset] = self._predecessors(pieces)
        filled = self.row_targets(rows)
        for row in np.flatnonzero(filled < self.seq_len).tolist():
            targets[row, filled[row] :] = IGNORE_INDEX
            inputs[row, filled[row] :] = self.split.boundary_id
        if segments is not None and positions is not None:
            _mark(pieces, filled, segments, positions)

    def sources(self, row: int) -> list[Fragment]:
        """The stretches of documents that are a row's targets, in order."""
        pieces = self._pieces(np.array([row], dtype=np.int64))
        documents = self.index.find(pieces.start)
        columns = (pieces.offset, documents, pieces.start - self.index.starts(documents), pieces.length)
        return [Fragment(*fields) for fields in zip(*(column.tolist() for column in columns), strict=True)]

    def document_tokens(self, document: int) -> int:
        """Length of a document in tokens."""
        start, end = self.index.span(document)
        return end - start

    def rows_at(self, places: np.ndarray, seed: int) -> np.ndarray:
        epochs, index = np.divmod(places, self.num_rows)
        rows = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            rows[of_epoch] = permute(index[of_epoch], self.num_rows, order_key(seed, epoch, self.hash))
        return rows

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros_like(rows), rows

    def places_of(self, part: int, seen: np.ndarray) -> np.ndarray:
        assert part == 0
        return seen

    def seen_by(self, part: int, place: int) -> int:
        assert part == 0
        return place

    @abstractmethod
    def rows_of(self, document: int) -> list[int]:
        """The rows that hold a document's tokens, from its first token to its last."""

    @abstractmethod
    def _runs(self, rows: np.ndarray) -> Pieces:
        """What to read for each row when attention crosses documents."""

    @abstractmethod
    def _pieces(self, rows: np.ndarray) -> Pieces:
        """The documents' stretches of each row."""

    @abstractmethod
    def _count_cut_documents(self) -> int: ...

    def _predecessors(self, pieces: Pieces) -> np.ndarray:
        """The input of each piece's first target."""
        before = np.full(len(pieces.start), self.split.boundary_id, dtype=np.int64)
        inside = np.flatnonzero(~pieces.begins)
        before[inside] = self._gather.at(pieces.start[inside] - 1)
        return before


def _mark(pieces: Pieces, filled: np.ndarray, segments: np.ndarray, positions: np.ndarray) -> None:
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
