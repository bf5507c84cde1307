"""Decides how documents become rows of T targets: `concat` cuts one stream, `bestfit` keeps whole what fits."""

from typing import Literal

import numpy as np

from packtrain.data.bestfit import best_fit_decreasing
from packtrain.data.gather import TokenStream
from packtrain.data.rows import IGNORE_INDEX, Fragment, Pieces, Plan
from packtrain.errors import DatasetError

__all__ = ["IGNORE_INDEX", "Fragment", "Packing", "Plan", "TokenStream", "plan"]

Packing = Literal["concat", "bestfit"]

# Documents that best-fit looks at together: more would pack no better, and these take some 100 MB meanwhile.
WINDOW_DOCUMENTS = 2**20


def plan(split: TokenStream, seq_len: int, packing: Packing) -> Plan:
    """Lay out a split as rows of `seq_len` targets.

    Takes no time for `concat` and about a tenth of a second per million documents for `bestfit`. Raises DatasetError
    for a split without a single token.
    """
    if split.num_tokens == 0:
        raise DatasetError(
            f"the {split.name} split holds no tokens, and rows need at least one; prepare a dataset with more documents"
        )
    return PACKINGS[packing](split, seq_len)


class ConcatPlan(Plan):
    """Row i has the targets tok[i * T : (i + 1) * T]; only the last row may have fewer than T."""

    packing = "concat"

    def __init__(self, split: TokenStream, seq_len: int) -> None:
        super().__init__(split, seq_len)
        self.num_targets = split.num_tokens
        self.num_rows = -(-split.num_tokens // seq_len)

    def row_targets(self, rows: np.ndarray) -> np.ndarray:
        return np.minimum(self.num_targets - rows * self.seq_len, self.seq_len)

    def rows_of(self, document: int) -> list[int]:
        start = int(self.ends[document - 1]) if document else 0
        end = int(self.ends[document])
        return list(range(start // self.seq_len, -(-end // self.seq_len))) if end > start else []

    def _runs(self, rows: np.ndarray) -> Pieces:
        start = rows * self.seq_len
        return Pieces(np.arange(len(rows)), np.zeros_like(start), start, self.row_targets(rows), start == 0)

    def _pieces(self, rows: np.ndarray) -> Pieces:
        row_start = rows * self.seq_len
        row_end = row_start + self.row_targets(rows)
        first = np.searchsorted(self.ends, row_start, side="right")
        last = np.searchsorted(self.ends, row_end - 1, side="right")
        row, within = _expand(last - first + 1)
        document = first[row] + within
        document_start = self._starts(document)
        start = np.maximum(document_start, row_start[row])
        length = np.minimum(self.ends[document], row_end[row]) - start
        pieces = (row, start - row_start[row], start, length, start == document_start)
        return Pieces(*(column[length > 0] for column in pieces))

    def _count_cut_documents(self) -> int:
        cut = 0
        for first in range(0, len(self.ends), WINDOW_DOCUMENTS):
            lengths = _lengths(self.ends, first, first + WINDOW_DOCUMENTS)
            ends = self.ends[first : first + WINDOW_DOCUMENTS]
            cut += int(((ends - lengths) // self.seq_len < (ends - 1) // self.seq_len)[lengths > 0].sum())
        return cut


class BestFitPlan(Plan):
    """A document longer than T is cut at multiples of T: full pieces are rows, what is left shares a row with others.

    Rows 0..F-1 are the full pieces in stream order, then come the shared rows, window by window. A document leaves at
    most one piece to share, so that the document's number names the piece.
    """

    packing = "bestfit"

    def __init__(self, split: TokenStream, seq_len: int) -> None:
        super().__init__(split, seq_len)
        number = np.uint32 if len(self.ends) < 2**32 else np.int64
        whole: list[tuple[np.ndarray, np.ndarray]] = []
        shared: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        num_members = 0
        for first in range(0, len(self.ends), WINDOW_DOCUMENTS):
            lengths = _lengths(self.ends, first, first + WINDOW_DOCUMENTS)
            num_full, rest = np.divmod(lengths, seq_len)
            long = np.flatnonzero(num_full)
            whole.append(((first + long).astype(number), num_full[long]))
            left = np.flatnonzero(rest)
            members, ends = best_fit_decreasing(rest[left], seq_len)
            if len(ends):
                used = np.add.reduceat(rest[left[members]], np.concatenate([[0], ends[:-1]]))
                shared.append(((first + left[members]).astype(number), num_members + ends, seq_len - used))
                num_members += len(members)
        self._long = np.concatenate([documents for documents, _ in whole])
        self._full_rows = np.cumsum(np.concatenate([num_full for _, num_full in whole]))
        self._num_full = int(self._full_rows[-1]) if len(self._full_rows) else 0
        self._members = np.concatenate([m for m, _, _ in shared] or [np.empty(0, dtype=number)])
        self._member_ends = np.concatenate([e for _, e, _ in shared] or [np.empty(0, dtype=np.int64)])
        room = np.concatenate([r for _, _, r in shared] or [np.empty(0, dtype=np.int64)])
        # Few shared rows have room left, so only those are kept.
        self._short = np.flatnonzero(room)
        self._room = room[self._short]
        self.num_rows = self._num_full + len(room)
        self.num_targets = self.num_rows * seq_len - int(room.sum())

    def row_targets(self, rows: np.ndarray) -> np.ndarray:
        targets = np.full(len(rows), self.seq_len, dtype=np.int64)
        if len(self._short):
            at = np.minimum(np.searchsorted(self._short, rows - self._num_full), len(self._short) - 1)
            found = self._short[at] == rows - self._num_full
            targets[found] -= self._room[at[found]]
        return targets

    def rows_of(self, document: int) -> list[int]:
        rows: list[int] = []
        at = int(np.searchsorted(self._long, document))
        if at < len(self._long) and self._long[at] == document:
            rows += range(int(self._full_rows[at - 1]) if at else 0, int(self._full_rows[at]))
        member = np.flatnonzero(self._members == document)
        return rows + (self._num_full + np.searchsorted(self._member_ends, member, side="right")).tolist()

    def _runs(self, rows: np.ndarray) -> Pieces:
        return self._pieces(rows)

    def _pieces(self, rows: np.ndarray) -> Pieces:
        is_shared = rows >= self._num_full
        shared = np.maximum(rows - self._num_full, 0)
        first = _before(self._member_ends, shared)
        count = np.ones(len(rows), dtype=np.int64)
        count[is_shared] = self._member_ends[shared[is_shared]] - first[is_shared]
        row, within = _expand(count)
        document = np.empty(len(row), dtype=np.int64)
        skipped = np.empty(len(row), dtype=np.int64)
        length = np.full(len(row), self.seq_len, dtype=np.int64)

        full = np.flatnonzero(~is_shared[row])
        full_row = rows[row[full]]
        at = np.searchsorted(self._full_rows, full_row, side="right")
        document[full] = self._long[at]
        skipped[full] = (full_row - _before(self._full_rows, at)) * self.seq_len

        part = np.flatnonzero(is_shared[row])
        document[part] = self._members[(first[row] + within)[part]]
        start = self._starts(document)
        total = self.ends[document[part]] - start[part]
        length[part] = total % self.seq_len
        skipped[part] = total - length[part]

        ends = np.cumsum(length)
        row_start = _before(ends, np.cumsum(count) - count)
        offset = ends - length - row_start[row]
        return Pieces(row, offset, start + skipped, length, skipped == 0)

    def _count_cut_documents(self) -> int:
        documents = self._long.astype(np.int64)
        return int((self.ends[documents] - self._starts(documents) > self.seq_len).sum())


PACKINGS: dict[Packing, type[ConcatPlan] | type[BestFitPlan]] = {"concat": ConcatPlan, "bestfit": BestFitPlan}


def _lengths(ends: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Lengths of the documents first..stop-1, int64."""
    return np.diff(ends[first:stop], prepend=ends[first - 1] if first else 0)


def _before(ends: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Where the index-th of the consecutive ranges that end at `ends` starts; 0 for an index below 1."""
    if not len(ends):
        return np.zeros(len(index), dtype=np.int64)
    return np.where(index > 0, ends[index - 1], 0)


def _expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts [2, 1]: which entry, [0, 0, 1], and which of that entry's, [0, 1, 0]."""
    entry = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return entry, np.arange(len(entry)) - before[entry]
