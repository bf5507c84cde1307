"""Decides how documents are packed again in each epoch after the first: in a new order, with other neighbours and other cuts."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from packtrain.data.rows.bestfit import lay_out
from packtrain.data.rows.index import WINDOW_DOCUMENTS
from packtrain.data.rows.order import invert, order_key, permute
from packtrain.data.rows.pack import BestFitPlan, ConcatPlan, expand
from packtrain.data.rows.plan import Fragment, Pieces, RowPlan
from packtrain.data.rows.plan_cache import Arrays, load_or_build
from packtrain.storage.mapped import check_length


class RepackedPlan(RowPlan):
    """Each epoch's own rows, all equally many: those of `first`, then those of its documents packed again.

    An epoch's packing depends on the lengths, the seed and the epoch alone, so nothing of it is saved. Rows of an epoch are
    numbered from epoch * num_rows. The order of the rows is keyed as without packing again, so the first epoch is the same.
    """

    def __init__(self, first: RowPlan, seed: int) -> None:
        self.packing = first.packing
        super().__init__(first.split, first.seq_len, first)
        self.first = first
        self.num_rows, self.num_targets = first.num_rows, first.num_targets
        self.hash = hashlib.blake2b(json.dumps(["repacked", first.hash]).encode(), digest_size=16).hexdigest()
        self._seed = seed
        # A batch may lie across the border of two.
        self._later = functools.lru_cache(maxsize=2)(self._pack)

    def of_epoch(self, epoch: int) -> RowPlan:
        return self._later(epoch) if epoch else self.first

    def first_row(self, epoch: int) -> int:
        return epoch * self.num_rows

    def fill(self, rows: np.ndarray, *out: np.ndarray) -> None:
        epochs, within = np.divmod(rows, self.num_rows)
        for epoch in np.unique(epochs).tolist():
            chosen = np.flatnonzero(epochs == epoch)
            if len(chosen) == len(rows):
                self.of_epoch(epoch).fill(within, *out)
                return
            filled = [np.empty((len(chosen), self.seq_len), array.dtype) for array in out]
            self.of_epoch(epoch).fill(within[chosen], *filled)
            for array, rows_of_epoch in zip(out, filled, strict=True):
                array[chosen] = rows_of_epoch

    def row_targets(self, rows: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(rows, self.num_rows)
        targets = np.empty(len(rows), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            targets[chosen] = self.of_epoch(epoch).row_targets(within[chosen])
        return targets

    def rows_at(self, places: np.ndarray, seed: int) -> np.ndarray:
        return places // self.num_rows * self.num_rows + self.first.rows_at(places, seed)

    def places_in(self, epoch: int, rows: np.ndarray, seed: int) -> np.ndarray:
        return self.first.places_in(epoch, rows, seed)

    def sources(self, row: int) -> list[Fragment]:
        epoch, within = divmod(row, self.num_rows)
        return self.of_epoch(epoch).sources(within)

    def rows_of(self, document: int) -> list[int]:
        """Those of the first epoch; `of_epoch` has those of the others."""
        return self.first.rows_of(document)

    def _pack(self, epoch: int) -> RowPlan:
        key = order_key(self._seed, epoch, f"documents {self.first.hash}")
        if isinstance(self.first, ConcatPlan):
            return ReorderedConcatPlan(self.first, key)
        assert isinstance(self.first, BestFitPlan)
        return ReorderedBestFitPlan(self.first, key)

    def _runs(self, rows: np.ndarray) -> Pieces:
        raise NotImplementedError("the plan of each epoch fills its own rows")

    _pieces = _runs

    def _count_cut_documents(self) -> int:
        return self.first.num_cut_documents


class ReorderedConcatPlan(ConcatPlan):
    """Documents as a ring in the order of `key`, cut into rows from a random token on, so that even a single document is cut elsewhere.

    Positions x in the ring count from its first document; the row that begins at `_begin` is the first.
    """

    def __init__(self, first: ConcatPlan, key: bytes) -> None:
        super().__init__(first.split, first.seq_len, first)
        self._key = key
        self._begin = int(permute(np.zeros(1, dtype=np.int64), self.num_targets, key)[0])
        self._ring_ends = self._end_in_order()

    def rows_of(self, document: int) -> list[int]:
        place = invert(np.array([document]), len(self.index), self._key)
        start, end = (int(x[0]) for x in self._span(place))
        # Counted from the first row; the document may begin in the last rows and end in the first.
        begin = (start - self._begin) % self.num_targets
        stops = begin + end - start
        parts = [(begin, min(stops, self.num_targets)), (0, stops - self.num_targets)]
        rows = [range(low // self.seq_len, -(-high // self.seq_len)) for low, high in parts if high > low]
        return list(dict.fromkeys(row for part in rows for row in part))

    def _runs(self, rows: np.ndarray) -> Pieces:
        """As `_pieces`, but the input of a document's first target is the last token of the document before it."""
        pieces = self._pieces(rows)
        before = np.roll(pieces.start + pieces.length, 1) - 1
        heads = np.flatnonzero(pieces.offset == 0)
        x = self._begin + rows[pieces.row[heads]] * self.seq_len - 1
        # Nothing comes before the first row, unless it begins within a document.
        is_first = (x < self._begin) & (pieces.before[heads] < 0)
        before[heads] = np.where(is_first, -1, self._in_stream(x, self._number(x)))
        return replace(pieces, before=before)

    def _pieces(self, rows: np.ndarray) -> Pieces:
        row_start = self._begin + rows * self.seq_len
        row_end = row_start + self.row_targets(rows)
        first, last = self._number(row_start), self._number(row_end - 1)
        row, within = expand(last - first + 1)
        number = first[row] + within
        ring_start, ring_end = self._span(number)
        start = np.maximum(ring_start, row_start[row])
        stream_start = self._in_stream(start, number)
        before = np.where(start == ring_start, -1, stream_start - 1)
        length = np.minimum(ring_end, row_end[row]) - start
        columns = (row, start - row_start[row], stream_start, length, before)
        return Pieces(*(column[length > 0] for column in columns))

    def _number(self, x: np.ndarray) -> np.ndarray:
        """Which document of the ring has each position; the numbers continue on each further way round."""
        check_length(self._ring_ends)
        turn, x = np.divmod(x, self.num_targets)
        return np.searchsorted(self._ring_ends, x, side="right") + turn * len(self.index)

    def _span(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where a document of the ring begins and ends."""
        turn, place = np.divmod(number, len(self.index))
        start = np.where(place > 0, self._ring_ends[place - 1], 0)
        return start + turn * self.num_targets, self._ring_ends[place] + turn * self.num_targets

    def _in_stream(self, x: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The position in the stream of each position x, which is in that document of the ring."""
        document = permute(number % len(self.index), len(self.index), self._key)
        return self.index.starts(document) + x - self._span(number)[0]

    def _end_in_order(self) -> np.ndarray:
        """Where each document of the ring ends, int64[documents]."""
        num_documents = len(self.index)
        return _load_or_make(
            self,
            self._key,
            lambda: ({"ends": ends} for ends in self._ends_by_window()),
            lambda arrays: arrays["ends"].shape == (num_documents,) and int(arrays["ends"][-1]) == self.num_targets,
        )["ends"]

    def _ends_by_window(self) -> Iterator[np.ndarray]:
        end = 0
        for first in range(0, len(self.index), WINDOW_DOCUMENTS):
            places = np.arange(first, min(first + WINDOW_DOCUMENTS, len(self.index)))
            documents = permute(places, len(self.index), self._key)
            ends = end + np.cumsum(self.index.ends(documents) - self.index.starts(documents))
            yield ends
            end = int(ends[-1])


class ReorderedBestFitPlan(BestFitPlan):
    """Best fit with pieces of about the same length exchanged, and long documents cut at other places (see `bestfit.lay_out`)."""

    def __init__(self, first: BestFitPlan, key: bytes) -> None:
        RowPlan.__init__(self, first.split, first.seq_len, first)
        self._take(_load_or_make(self, key, lambda: lay_out(self.index, self.seq_len, key), self._fits))
        assert self.num_rows == first.num_rows


def _load_or_make(
    plan: RowPlan, key: bytes, make: Callable[[], Iterable[Arrays]], fits: Callable[[Arrays], bool]
) -> Arrays:
    """Arrays of an epoch: in memory, or mapped from a file if there are many documents."""
    folder = plan.split.plan_folder if len(plan.index) > WINDOW_DOCUMENTS else None
    content = json.dumps(["an epoch", plan.hash, key.hex()])
    return load_or_build(folder, hashlib.blake2b(content.encode(), digest_size=16).hexdigest(), make, fits)
