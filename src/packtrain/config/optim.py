"""Decides the optimizer and the learning rate over time."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from packtrain.config.base import Section

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class OptimConfig(Section):
    """AdamW (arXiv 1711.05101), with float32 or 8-bit states (arXiv 2110.02861). Norms and biases are never decayed."""

    name: Literal["adamw", "adamw8bit"] = "adamw"
    """`adamw`: fused, float32 states. `adamw8bit`: block-wise 8-bit states through bitsandbytes."""
    lr: PositiveFloat = 6e-4
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay of matrices and embeddings, per step times the learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay of the running mean and mean square of the gradient."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean square."""


class ScheduleConfig(Section):
    """Learning rate over time: a linear warm-up to optim.lr, then the named shape."""

    name: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """`cosine` and `linear` fall until the last step; `wsd` stays, then falls linearly (arXiv 2404.06395); `constant` stays."""
    warmup_steps: NonNegativeInt = 1000
    """Steps until the peak is reached."""
    min_lr_ratio: Fraction = 0.1
    """The floor that the rate ends at, as a share of optim.lr."""
    decay_fraction: Fraction = 0.2
    """wsd: share of all steps spent falling."""
