"""Decides when a run must not go on: too many steps in a row whose loss or gradient is not finite."""

from packtrain.errors import NonFiniteError
from packtrain.train.step import StepResult

# float16 finds its loss scale by overshooting: from 2^16 it may halve that often before a step is finite.
_PATIENCE = {"fp16": 25}
_DEFAULT_PATIENCE = 5


class NonFiniteGuard:
    """Counts skipped steps in a row. Its state is that one number, saved with the run."""

    def __init__(self, precision: str, num_skipped_in_row: int = 0) -> None:
        self.patience = _PATIENCE.get(precision, _DEFAULT_PATIENCE)
        self.num_skipped_in_row = num_skipped_in_row

    def observe(self, step: int, result: StepResult) -> None:
        """Raises NonFiniteError once more steps in a row than the patience were skipped."""
        self.num_skipped_in_row = 0 if result.is_applied else self.num_skipped_in_row + 1
        if self.num_skipped_in_row > self.patience:
            raise NonFiniteError(
                f"loss or gradient was not finite in {self.num_skipped_in_row} steps in a row, up to step {step} "
                f"(loss {result.loss}, gradient norm {result.grad_norm}); none of them touched the weights; "
                "lower optim.lr, raise schedule.warmup_steps, or write train.precision=fp32, in a new --run"
            )
