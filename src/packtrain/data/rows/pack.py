"""Decides how documents become rows of T targets: `concat` cuts one stream, `bestfit` keeps whole what fits."""

import hashlib
import json
from functools import cached_property
from typing import Literal

import numpy as np

from packtrain.data.rows.bestfit import lay_out
from packtrain.data.rows.gather import TokenStream
from packtrain.data.rows.index import WINDOW_DOCUMENTS
from packtrain.data.rows.plan import Pieces, RowPlan
from packtrain.data.rows.plan_cache import Arrays, load_or_build
from packtrain.errors import DatasetError
from packtrain.storage.mapped import check_length, find_map

Packing = Literal["concat", "bestfit"]

# The ends of more documents than this are mapped from a file instead of held in memory.
_MAX_ENDS_IN_MEMORY = WINDOW_DOCUMENTS


def plan(split: TokenStream, seq_len: int, packing: Packing) -> RowPlan:
    """Lay out a split as rows of `seq_len` targets.

    Takes no time for `concat`. `bestfit` takes about a tenth of a second per million documents, and milliseconds the next
    time, because its plan is kept (see `plan_cache`). Raises DatasetError if the split has no tokens.
    """
    if split.num_tokens == 0:
        raise DatasetError(
            f"the {split.name} split has no tokens, and rows need at least one; prepare a dataset with more documents"
        )
    return PACKINGS[packing](split, seq_len)


class ConcatPlan(RowPlan):
    """Row i has the targets tok[i * T : (i + 1) * T]; only the last row may have fewer than T."""

    packing = "concat"

    def __init__(self, split: TokenStream, seq_len: int, like: RowPlan | None = None) -> None:
        super().__init__(split, seq_len, like)
        self.num_targets = split.num_tokens
        self.num_rows = -(-split.num_tokens // seq_len)

    def row_targets(self, rows: np.ndarray) -> np.ndarray:
        return np.minimum(self.num_targets - rows * self.seq_len, self.seq_len)

    def rows_of(self, document: int) -> list[int]:
        start, end = self.index.span(document)
        return list(range(start // self.seq_len, -(-end // self.seq_len))) if end > start else []

    @cached_property
    def _ends(self) -> np.ndarray:
        """Ends of all documents in one array, so that one search serves a batch. Needed only to keep documents apart."""
        num_documents = len(self.index)
        if num_documents <= _MAX_ENDS_IN_MEMORY:
            return self.index.window(0, num_documents)
        content = json.dumps(["document ends", self.split.manifest_hash, self.split.name])
        name = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        return load_or_build(
            self.split.plan_folder,
            name,
            lambda: ({"ends": starts + lengths} for _, starts, lengths in self.index.windows()),
            lambda arrays: arrays["ends"].shape == (num_documents,) and int(arrays["ends"][-1]) == self.num_targets,
        )["ends"]

    def _runs(self, rows: np.ndarray) -> Pieces:
        start = rows * self.seq_len
        return Pieces(np.arange(len(rows)), np.zeros_like(start), start, self.row_targets(rows), start - 1)

    def _pieces(self, rows: np.ndarray) -> Pieces:
        ends = self._ends
        check_length(ends)
        row_start = rows * self.seq_len
        row_end = row_start + self.row_targets(rows)
        first = np.searchsorted(ends, row_start, side="right")
        last = np.searchsorted(ends, row_end - 1, side="right")
        row, within = expand(last - first + 1)
        document = first[row] + within
        document_start = _before(ends, document)
        start = np.maximum(document_start, row_start[row])
        length = np.minimum(ends[document], row_end[row]) - start
        before = np.where(start == document_start, -1, start - 1)
        pieces = (row, start - row_start[row], start, length, before)
        return Pieces(*(column[length > 0] for column in pieces))

    def _count_cut_documents(self) -> int:
        cut = 0
        for _, starts, lengths in self.index.windows():
            cut += int((starts // self.seq_len < (starts + lengths - 1) // self.seq_len)[lengths > 0].sum())
        return cut


class BestFitPlan(RowPlan):
    """A document longer than T is cut at multiples of T: full pieces are rows, and the rest shares a row with others.

    Rows 0..F-1 are the full pieces in stream order. The shared rows follow, window by window. A document leaves at most one
    piece to share. `bestfit.lay_out` says what the arrays contain.
    """

    packing = "bestfit"

    def __init__(self, split: TokenStream, seq_len: int) -> None:
        super().__init__(split, seq_len)
        self._take(load_or_build(split.plan_folder, self.hash, lambda: lay_out(self.index, seq_len), self._fits))

    def _take(self, arrays: Arrays) -> None:
        self._maps = [mapped for mapped in map(find_map, arrays.values()) if mapped is not None]
        self._long_starts, self._long_rows = arrays["long_starts"], arrays["long_rows"]
        self._long_begins = arrays.get("long_begins")
        self._member_starts, self._member_lengths = arrays["member_starts"], arrays["member_lengths"]
        self._shared_ends = arrays["shared_ends"]
        self._short_rows, self._short_rooms = arrays["short_rows"], arrays["short_rooms"]
        self._window_ends = arrays["window_ends"]
        self._num_full = _last(self._long_rows)
        self.num_rows = self._num_full + len(self._shared_ends)
        self.num_targets = self._count_targets(arrays)

    def row_targets(self, rows: np.ndarray) -> np.ndarray:
        self._check_maps()
        targets = np.full(len(rows), self.seq_len, dtype=np.int64)
        if len(self._short_rows):
            at = np.minimum(np.searchsorted(self._short_rows, rows - self._num_full), len(self._short_rows) - 1)
            found = self._short_rows[at] == rows - self._num_full
            targets[found] -= self._short_rooms[at[found]]
        return targets

    def rows_of(self, document: int) -> list[int]:
        start, end = self.index.span(document)
        full = np.arange(*_before(self._long_rows, np.searchsorted(self._long_starts, [start, end])))
        window = document // WINDOW_DOCUMENTS
        first = int(self._window_ends[window - 1]) if window else 0
        member_starts = self._member_starts[first : int(self._window_ends[window])] >> 1
        member = np.flatnonzero((member_starts >= start) & (member_starts < end))
        shared = self._num_full + np.searchsorted(self._shared_ends, first + member, side="right")
        by_start = np.argsort(np.concatenate([self._pieces(full).start, member_starts[member]]))
        return np.concatenate([full, shared])[by_start].tolist()

    def _runs(self, rows: np.ndarray) -> Pieces:
        return self._pieces(rows)

    def _pieces(self, rows: np.ndarray) -> Pieces:
        self._check_maps()
        is_shared = rows >= self._num_full
        shared = np.maximum(rows - self._num_full, 0)
        first = _before(self._shared_ends, shared)
        count = np.ones(len(rows), dtype=np.int64)
        count[is_shared] = self._shared_ends[shared[is_shared]] - first[is_shared]
        row, within = expand(count)
        start = np.empty(len(row), dtype=np.int64)
        begins = np.empty(len(row), dtype=np.bool_)
        length = np.full(len(row), self.seq_len, dtype=np.int64)

        full = np.flatnonzero(~is_shared[row])
        full_row = rows[row[full]]
        at = np.searchsorted(self._long_rows, full_row, side="right")
        skipped = (full_row - _before(self._long_rows, at)) * self.seq_len
        start[full] = self._long_starts[at] + skipped
        begins[full] = skipped == 0
        if self._long_begins is not None:
            begins[full] &= self._long_begins[at] > 0

        part = np.flatnonzero(is_shared[row])
        member = (first[row] + within)[part]
        member_start = self._member_starts[member]
        start[part], begins[part] = member_start >> 1, member_start & 1
        length[part] = self._member_lengths[member]

        ends = np.cumsum(length)
        row_start = _before(ends, np.cumsum(count) - count)
        return Pieces(row, ends - length - row_start[row], start, length, np.where(begins, -1, start - 1))

    def _count_cut_documents(self) -> int:
        return sum(int((lengths > self.seq_len).sum()) for _, _, lengths in self.index.windows())

    def _check_maps(self) -> None:
        for mapped in self._maps:
            mapped.check()

    def _count_targets(self, arrays: Arrays) -> int:
        num_rows = _last(arrays["long_rows"]) + len(arrays["shared_ends"])
        return num_rows * self.seq_len - int(arrays["short_rooms"].sum())

    def _fits(self, arrays: Arrays) -> bool:
        return self._count_targets(arrays) == self.split.num_tokens and len(arrays["member_starts"]) == len(
            arrays["member_lengths"]
        ) == _last(arrays["shared_ends"])


PACKINGS: dict[Packing, type[ConcatPlan] | type[BestFitPlan]] = {"concat": ConcatPlan, "bestfit": BestFitPlan}


def _last(ends: np.ndarray) -> int:
    return int(ends[-1]) if len(ends) else 0


def _before(ends: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The start of the index-th of the consecutive ranges that end at `ends`; 0 for an index below 1."""
    if not len(ends):
        return np.zeros(len(index), dtype=np.int64)
    return np.where(index > 0, ends[index - 1], 0)


def expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts [2, 1]: the entry, [0, 0, 1], and the number within the entry, [0, 1, 0]."""
    entry = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return entry, np.arange(len(entry)) - before[entry]
