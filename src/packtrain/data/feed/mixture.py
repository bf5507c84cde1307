"""Decides how the rows of several datasets become one run: which dataset a place is given to, and which of its rows."""

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
    """A dataset's part in a mixture."""

    plan: RowPlan
    weight: int
    """As `interleave.whole_weights` gives them."""
    max_epochs: float | None = None
    """Times that its rows may be seen; None for no limit."""

    @property
    def num_available(self) -> int | None:
        """Rows that it has to give in all; at least one."""
        if self.max_epochs is None:
            return None
        return max(1, int(Fraction(str(self.max_epochs)) * self.plan.num_rows))


class Mixture(Layout):
    """The rows of all parts, one plan's after the other's, seen in the ratio of the weights.

    A part goes through its epochs in orders of its own, as if it were alone. A part that is used up leaves its places to the
    others, which share them by their weights. One part alone is what its plan is, and only may have an end.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        assert shares and len({share.plan.seq_len for share in shares}) == 1
        self._plans = tuple(share.plan for share in shares)
        self.seq_len = self._plans[0].seq_len
        self._offsets = np.cumsum([0, *(plan.num_rows for plan in self._plans)], dtype=np.int64)
        self.num_rows = int(self._offsets[-1])
        self.num_targets = sum(plan.num_targets for plan in self._plans)
        self._interleave = Interleave([share.weight for share in shares], [share.num_available for share in shares])
        self.num_places = self._interleave.num_places
        self.hash = combined_hash([(share.plan.hash, share.weight, share.max_epochs) for share in shares])
        datasets = [(share.plan.manifest_hash, share.weight, share.max_epochs) for share in shares]
        self.manifest_hash = combined_hash(datasets)

    @property
    def parts(self) -> Sequence[RowPlan]:
        return self._plans

    def fill(
        self,
        rows: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray,
        segments: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> None:
        part, within = self.locate(rows)
        if len(rows) and (part == part[0]).all():
            self._plans[part[0]].fill(within, inputs, targets, segments, positions)
            return
        wanted = (inputs, targets, segments, positions)
        for number in np.unique(part).tolist():
            chosen = np.flatnonzero(part == number)
            shape = (len(chosen), self.seq_len)
            made = tuple(None if array is None else np.empty(shape, array.dtype) for array in wanted)
            assert made[0] is not None and made[1] is not None
            self._plans[number].fill(within[chosen], made[0], made[1], made[2], made[3])
            for array, filled in zip(wanted, made, strict=True):
                if array is not None and filled is not None:
                    array[chosen] = filled

    def row_targets(self, rows: np.ndarray) -> np.ndarray:
        part, within = self.locate(rows)
        targets = np.empty(len(rows), dtype=np.int64)
        for number in np.unique(part).tolist():
            chosen = part == number
            targets[chosen] = self._plans[number].row_targets(within[chosen])
        return targets

    def rows_at(self, places: np.ndarray, seed: int) -> np.ndarray:
        part, seen = self._interleave.at(places)
        rows = np.empty(len(places), dtype=np.int64)
        for number in np.unique(part).tolist():
            chosen = part == number
            rows[chosen] = self._offsets[number] + self._plans[number].rows_at(seen[chosen], seed)
        return rows

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        part = np.searchsorted(self._offsets, rows, side="right") - 1
        return part, rows - self._offsets[part]

    def places_of(self, part: int, seen: np.ndarray) -> np.ndarray:
        return self._interleave.places_of(part, seen)

    def seen_by(self, part: int, place: int) -> int:
        return self._interleave.seen_by(part, place)


def combined_hash(parts: Sequence[tuple[str, int, float | None]]) -> str:
    """SHA-256, hexadecimal, of a mixture: hash, weight and max_epochs of each part; one alone keeps its own hash."""
    if len(parts) == 1:
        return parts[0][0]
    return hashlib.sha256(canonical_json(["packtrain mixture", list(parts)])).hexdigest()
