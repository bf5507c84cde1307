"""Decides what a run does about steps that would harm it, and about steps that do not end."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from packtrain.config.base import Section


class GuardConfig(Section):
    """Spikes and stalls. A loss or gradient that is not finite never reaches the weights, whatever stands here."""

    # Healthy runs of the demo, at its rate and at ten and thirty times it, stay within 3 deviations of the loss, but single
    # batches have a gradient norm of 3 to 4 times the median, which clipping makes good: hence the least deviation of the norm.
    spike_zscore: NonNegativeFloat = 10.0
    """A step is skipped if its loss or gradient norm lies above the recent median by so many robust standard deviations
    (of the logarithm, by the median absolute deviation, but 0.02 of the loss and 0.25 of the norm at least: 10 of those are
    a loss up by 22 %, a norm 12-fold); 0 turns it off."""
    window: int = Field(default=128, ge=8)
    """Applied steps that are looked back upon. Nothing is a spike before half of them are there."""
    patience: PositiveInt = 5
    """More skipped steps than this among the last four times as many take the run back to the last good checkpoint before
    them, and past the data since. With fp16 it is 25 at least, since a loss scale is found by overshooting."""
    max_rollbacks: NonNegativeInt = 3
    """Rollbacks of a run; where it would take another, or has no good checkpoint, it stops with exit code 4."""
    stall_seconds: PositiveFloat | Literal["auto"] = "auto"
    """A step that takes longer is reported, with the stack of each process in stalls/. `auto`: twenty times the median
    step, a minute at least, from the fourth step of a process on (the first may compile)."""
    stall_action: Literal["report", "stop"] = "report"
    """`stop` ends a stalled process with exit code 4; the run goes on from its last checkpoint with --resume."""
