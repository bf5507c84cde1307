"""Decides whether a case is begun: only if it ends before the deadline, by an estimate that earlier cases correct."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable

# A case may take this much longer than expected before it would miss the deadline.
MARGIN = 1.2
# Left at the end to write the files.
RESERVE_S = 3.0
# A case that takes this many times what was expected is ended, but none before LEAST_LIMIT_S.
RUNS_OVER, LEAST_LIMIT_S = 4.0, 60.0


class Schedule:
    """The time until `deadline_s` seconds from now; None: without end. `now` gives seconds, and never goes back."""

    def __init__(self, deadline_s: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = None if deadline_s is None else now() + deadline_s - RESERVE_S
        self._ratios: dict[str, list[float]] = defaultdict(list)

    def now(self) -> float:
        """Seconds on the schedule's clock."""
        return self._now()

    def left_s(self) -> float:
        """Seconds until the deadline, less what writing the files needs."""
        return float("inf") if self._end is None else self._end - self._now()

    def learn(self, kind: str, estimate_s: float, taken_s: float) -> None:
        """Corrects later estimates by a case of `kind` that took `taken_s`."""
        self._ratios[kind].append(taken_s / estimate_s)

    def expect_s(self, kind: str, estimate_s: float) -> float:
        """The estimate, corrected by the median of its kind. Without one, other kinds can only make it longer."""
        if own := self._ratios.get(kind):
            return estimate_s * statistics.median(own)
        others = [ratio for ratios in self._ratios.values() for ratio in ratios]
        return estimate_s * max(1.0, statistics.median(others) if others else 1.0)

    def fits(self, expected_s: float) -> bool:
        """Whether a case that is expected to take `expected_s` ends before the deadline."""
        return expected_s * MARGIN <= self.left_s()

    def limit_s(self, expected_s: float) -> float:
        """Seconds after which such a case is ended."""
        return max(0.0, min(self.left_s(), max(LEAST_LIMIT_S, RUNS_OVER * expected_s)))
