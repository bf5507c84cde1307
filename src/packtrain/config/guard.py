"""Decides what a run does about steps that would harm it and steps that do not end."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from packtrain.config.base import Section


class GuardConfig(Section):
    """Spikes and stalls. Whatever is set here, a loss or gradient that is not finite never reaches the weights."""

    # The loss of healthy runs of the demo, at 1, 10 and 30 times its learning rate, stays within 3 deviations. Single batches
    # have a gradient norm of 3 to 4 times the median, and clipping handles them: hence the minimum deviation of the norm.
    spike_zscore: NonNegativeFloat = 10.0
    """A step is skipped if its loss or gradient norm is above the recent median by this many robust standard deviations; 0
    turns this off. They are measured on the logarithm, from the median absolute deviation, and are at least 0.02 for the loss
    and 0.25 for the norm. At that minimum, 10 of them are a loss 22% above the median, or 12 times the norm."""
    window: int = Field(default=128, ge=8)
    """Recent applied steps to compare with. Nothing counts as a spike before there are half of them."""
    patience: PositiveInt = 5
    """The run rolls back if more than this many of the last 4 × patience steps were skipped: to the last good checkpoint
    before them, and past the data since. At least 25 with fp16, which finds its loss scale by overshooting."""
    max_rollbacks: NonNegativeInt = 3
    """Most rollbacks of a run. If it needs another, or has no good checkpoint, it stops with exit code 4."""
    stall_seconds: PositiveFloat | Literal["auto"] = "auto"
    """A step that takes longer is reported, with the stack of each process in stalls/. `auto`: 20 times the median of the
    steps since the fourth of a process (the first may compile), at least a minute; the first four are not watched."""
    stall_action: Literal["report", "stop"] = "report"
    """`stop` ends a stalled process with exit code 4; --resume then continues from the last checkpoint."""
