"""Decides what is evaluated during training."""

from pydantic import NonNegativeInt, PositiveInt

from packtrain.config.base import Section


class EvaluateConfig(Section):
    """Validation and samples during a run."""

    every: NonNegativeInt = 500
    """Steps between validations; 0 for none. Unless it is 0, the last step is always followed by one."""
    tokens: PositiveInt = 1_048_576
    """Tokens to validate on, from rows that stay the same through the run. A smaller validation split is used whole."""
    prompts: tuple[str, ...] | None = None
    """Prompts to continue at each validation; the samples are kept in samples/. Unset: the openings of up to three validation
    documents, always the same. An empty list: no samples."""
    sample_tokens: PositiveInt = 64
    """Tokens in each sample."""
