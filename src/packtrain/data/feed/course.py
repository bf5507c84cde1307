"""Decides which step of a run stands at which place of its data, also where the run went back or began at another's place."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Course:
    """The way of a run through its data, as it is after everything that happened to it.

    A place is counted over epochs from the beginning of the data. A run that only goes on stands at row 0 before step 1.
    """

    rows_per_step: int
    turns: tuple[tuple[int, int], ...] = ((0, 0),)
    """After which step it stood at which place, ascending; between turns each step takes the rows behind those before it."""
    skipped: Mapping[int, str] = field(default_factory=dict)
    """Why a step that was kept from the weights was."""

    @property
    def first_place(self) -> int:
        return self.turns[0][1]

    def place_of(self, step: int) -> int:
        """The place of a step's first row; steps are counted from 1."""
        after, place = [turn for turn in self.turns if turn[0] < step][-1]
        return place + (step - 1 - after) * self.rows_per_step

    def step_at(self, place: int) -> tuple[int, int] | None:
        """The step that has a place, and which of its rows that is, from 0; None where the run went past it or began behind it."""
        found = None
        for number, (after, start) in enumerate(self.turns):
            step, row_of_step = divmod(place - start, self.rows_per_step)
            is_last = number + 1 == len(self.turns)
            if step >= 0 and (is_last or after + step < self.turns[number + 1][0]):
                found = after + step + 1, row_of_step
        return found
