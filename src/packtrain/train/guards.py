"""Decides which steps are skipped as spikes, and when too many were skipped, so that a run must roll back or stop."""

import math
from collections import deque
from statistics import median
from typing import Any

from packtrain.config.guard import GuardConfig
from packtrain.errors import DivergedError, GuardError, NonFiniteError
from packtrain.train.step import NOT_FINITE, StepResult

# float16 finds its loss scale by overshooting: it may halve 2^16 this many times before a step is finite.
_FP16_PATIENCE = 25
# Skipped steps are counted among the last 4 × patience steps: one in four is too many, in a row or not.
_STEPS_PER_PATIENCE = 4
# Smallest standard deviations of the logarithm: after a quiet stretch, small changes must not count as spikes.
# At a z-score of 10 a loss must rise by 22 %, a gradient norm 12-fold.
_LEAST_LOSS_DEVIATION = 0.02
_LEAST_NORM_DEVIATION = 0.25
# Standard deviations of a normal distribution in one median absolute deviation.
_DEVIATIONS_PER_MAD = 1.4826


class Guard:
    """Looks at the loss and gradient norm of each step. Everything it remembers is in `state`, which is saved with the run.

    Every rank has its own guard, which sees the same numbers, so all ranks decide alike.
    """

    def __init__(self, config: GuardConfig, precision: str, state: dict[str, Any] | None = None) -> None:
        self.config = config
        self.patience = max(config.patience, _FP16_PATIENCE) if precision == "fp16" else config.patience
        self.num_rollbacks = 0
        self.restore(state or {})

    def state(self) -> dict[str, Any]:
        """What `restore` takes, as JSON values."""
        return {
            "losses": list(self._losses),
            "grad_norms": list(self._grad_norms),
            "recent_skips": list(self._skips),
            "num_rollbacks": self.num_rollbacks,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state. The number of rollbacks never falls: rolling back does not undo one."""
        self._losses = deque(state.get("losses", []), maxlen=self.config.window)
        self._grad_norms = deque(state.get("grad_norms", []), maxlen=self.config.window)
        # Whether each of the last steps was skipped, the oldest first.
        self._skips = deque(state.get("recent_skips", []), maxlen=_STEPS_PER_PATIENCE * self.patience)
        self.num_rollbacks = max(self.num_rollbacks, int(state.get("num_rollbacks", 0)))

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Why a step with these (finite) numbers must be skipped; None if it need not be."""
        # Nothing is judged before the window is half full.
        if not self.config.spike_zscore or len(self._losses) < self.config.window // 2:
            return None
        if robust_zscore(loss, self._losses, _LEAST_LOSS_DEVIATION) > self.config.spike_zscore:
            return "spike of the loss"
        if robust_zscore(grad_norm, self._grad_norms, _LEAST_NORM_DEVIATION) > self.config.spike_zscore:
            return "spike of the gradient norm"
        return None

    def observe(self, result: StepResult) -> bool:
        """Remembers what a step did; whether more steps were skipped recently than guard.patience allows."""
        self._skips.append(not result.is_applied)
        if result.is_applied:
            self._losses.append(result.loss)
            self._grad_norms.append(result.grad_norm)
            return False
        return sum(self._skips) > self.patience

    def last_good_step(self, step: int) -> int | None:
        """The latest step to roll back to from `step`, the last of too many skipped ones; None if no rollback is left.

        It comes before all of them, and one more applied step follows it: an update that ruins the weights only shows in
        the step after it.
        """
        if self.num_rollbacks >= self.config.max_rollbacks:
            return None
        return step - self._num_steps_since_first_skip() - 1

    def explain_stop(self, step: int, result: StepResult) -> GuardError:
        """The error that ends a run which cannot roll back."""
        skipped, among = sum(self._skips), self._num_steps_since_first_skip()
        number = (
            f"{skipped} " + ("steps in a row" if skipped == among else f"of {among} steps") + f", up to step {step}"
        )
        numbers = f"loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}"
        advice = "lower optim.lr, raise schedule.warmup_steps, or write {}, in a new --run"
        why = (
            f"after {self.num_rollbacks} rollbacks (guard.max_rollbacks)"
            if self.num_rollbacks
            else "and there is no good checkpoint to roll back to"
        )
        if result.skipped == NOT_FINITE:
            return NonFiniteError(
                f"loss or gradient was not finite in {number} ({numbers}) {why}; none of them changed the weights; "
                + advice.format("train.precision=fp32")
            )
        return DivergedError(
            f"loss or gradient norm was far above earlier values in {number} ({numbers}) {why}; none of them changed "
            "the weights; " + advice.format(f"a guard.spike_zscore above {self.config.spike_zscore:g} (0 for none)")
        )

    def _num_steps_since_first_skip(self) -> int:
        """Counts the first of the recent skips and all steps after it."""
        return len(self._skips) - self._skips.index(True) if True in self._skips else 0


def robust_zscore(value: float, history: deque[float], least_deviation: float) -> float:
    """How far log(value) is above the median of log(history), in standard deviations estimated from the median absolute deviation."""
    logs = [_log(past) for past in history]
    middle = median(logs)
    deviation = _DEVIATIONS_PER_MAD * median(abs(log - middle) for log in logs)
    return (_log(value) - middle) / max(deviation, least_deviation)


def _log(value: float) -> float:
    # A loss or gradient norm of 0 has no logarithm.
    return math.log(max(value, 1e-12))
