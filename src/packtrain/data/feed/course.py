"""Decides which step of a run sees which place of its data, even if the run rolled back or began in the middle."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Course:
    """The path of a run through its data, after everything that happened to it.

    Places count rows over epochs from the beginning of the data. A run without incidents is at place 0 before step 1.
    """

    rows_per_step: int
    turns: tuple[tuple[int, int], ...] = ((0, 0),)
    """Pairs (step, place), ascending: after this step the run was at this place. From there each step takes the next rows."""
    skipped: Mapping[int, str] = field(default_factory=dict)
    """Steps that did not change the weights, with the reason."""

    @property
    def first_place(self) -> int:
        return self.turns[0][1]

    def place_of(self, step: int) -> int:
        """The place of a step's first row; steps are counted from 1."""
        after, place = [turn for turn in self.turns if turn[0] < step][-1]
        return place + (step - 1 - after) * self.rows_per_step

    def step_at(self, place: int) -> tuple[int, int] | None:
        """The step that sees a place, and which of its rows that is, from 0; None if the run skipped it or began after it."""
        found = None
        for number, (after, start) in enumerate(self.turns):
            step, row_of_step = divmod(place - start, self.rows_per_step)
            is_last = number + 1 == len(self.turns)
            if step >= 0 and (is_last or after + step < self.turns[number + 1][0]):
                found = after + step + 1, row_of_step
        return found
