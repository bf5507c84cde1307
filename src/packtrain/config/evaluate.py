"""Decides what is evaluated during training."""

from pydantic import NonNegativeInt, PositiveInt

from packtrain.config.base import Section


class EvaluateConfig(Section):
    """Validation and samples in the course of a run."""

    every: NonNegativeInt = 500
    """Steps between validations; 0 for none. The last step is always validated unless this is 0."""
    tokens: PositiveInt = 1_048_576
    """Validation targets, on rows that stay the same through the run; all of the split where it is smaller."""
    prompts: tuple[str, ...] = ()
    """Continued at each validation and kept under samples/."""
    sample_tokens: PositiveInt = 64
    """Length of each such sample."""
