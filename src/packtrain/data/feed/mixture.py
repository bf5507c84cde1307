"""Decides how the rows of one or more datasets become one run: which dataset a place is given to, and which of its rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from packtrain.data.feed.interleave import Interleave
from packtrain.data.format.manifest import canonical_json
from packtrain.data.rows.plan import Layout, RowPlan


@dataclass(frozen=True)
class Share:
    """One dataset of a mixture."""

    plan: RowPlan
    weight: int
    """As `interleave.whole_weights` gives it."""
    max_epochs: float | None = None
    """How many times its rows may be seen; None for no limit."""

    @property
    def num_available(self) -> int | None:
        """Rows that it can give in all, at least one; None for no limit."""
        if self.max_epochs is None:
            return None
        return max(1, int(Fraction(str(self.max_epochs)) * self.plan.num_rows))


class Mixture(Layout):
    """The rows of all datasets, numbered one plan after the other, and seen in the ratio of the weights.

    Each dataset goes through its epochs in its own orders, as if it were alone. When a dataset is used up, the others share
    its places by their weights. A mixture of one dataset is the same as its plan, but for a limit of epochs.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        assert shares and len({share.plan.seq_len for share in shares}) == 1
        self.parts = tuple(share.plan for share in shares)
        self.offsets = np.cumsum([0, *(plan.num_rows for plan in self.parts)], dtype=np.int64)
        """Number of the first row of each part."""
        self.seq_len = self.parts[0].seq_len
        self.num_rows = int(self.offsets[-1])
        self.num_targets = sum(plan.num_targets for plan in self.parts)
        self._interleave = Interleave([share.weight for share in shares], [share.num_available for share in shares])
        self.num_places = self._interleave.num_places
        self.hash = combine_hashes([(share.plan.hash, share.weight, share.max_epochs) for share in shares])
        datasets = [(share.plan.manifest_hash, share.weight, share.max_epochs) for share in shares]
        self.manifest_hash = combine_hashes(datasets)

    def fill(self, rows: np.ndarray, *out: np.ndarray) -> None:
        part, within = self.locate(rows)
        if len(rows) and (part == part[0]).all():
            self.parts[part[0]].fill(within, *out)
            return
        for number in np.unique(part).tolist():
            chosen = np.flatnonzero(part == number)
            filled = [np.empty((len(chosen), self.seq_len), array.dtype) for array in out]
            self.parts[number].fill(within[chosen], *filled)
            for array, rows_of_part in zip(out, filled, strict=True):
                array[chosen] = rows_of_part

    def row_targets(self, rows: np.ndarray) -> np.ndarray:
        part, within = self.locate(rows)
        targets = np.empty(len(rows), dtype=np.int64)
        for number in np.unique(part).tolist():
            chosen = part == number
            targets[chosen] = self.parts[number].row_targets(within[chosen])
        return targets

    def rows_at(self, places: np.ndarray, seed: int) -> np.ndarray:
        part, seen = self._interleave.at(places)
        rows = np.empty(len(places), dtype=np.int64)
        for number in np.unique(part).tolist():
            chosen = part == number
            rows[chosen] = self.number(number, self.parts[number].rows_at(seen[chosen], seed))
        return rows

    def number(self, part: int, within: np.ndarray) -> np.ndarray:
        """The number of each row of a part's plan: int64[n] for int64[n]. Rows of a later epoch come after all of the first."""
        epoch, row = np.divmod(within, self.parts[part].num_rows)
        return epoch * self.num_rows + self.offsets[part] + row

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part that each row belongs to, and the row's number in that plan: int64[B] each."""
        epoch, row = np.divmod(rows, self.num_rows)
        part = np.searchsorted(self.offsets, row, side="right") - 1
        return part, epoch * np.diff(self.offsets)[part] + row - self.offsets[part]

    def places_of(self, part: int, seen: np.ndarray) -> np.ndarray:
        """The place of a part's next row, once `seen` of its rows were seen: int64[n] for int64[n]; -1 if it is used up."""
        return self._interleave.places_of(part, seen)

    def seen_by(self, part: int, place: int) -> int:
        """How many of the places before `place` belong to a part."""
        return self._interleave.seen_by(part, place)


def combine_hashes(parts: Sequence[tuple[str, int, float | None]]) -> str:
    """SHA-256, hexadecimal, of the hash, weight and max_epochs of each part; a single part keeps its own hash."""
    if len(parts) == 1:
        return parts[0][0]
    return hashlib.sha256(canonical_json(["packtrain mixture", list(parts)])).hexdigest()
