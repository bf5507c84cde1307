"""Decides what a loader needs of rows: their number, their content, and the order in which a run sees them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from packtrain.data.rows import Plan


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
    def parts(self) -> "Sequence[Plan]":
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
