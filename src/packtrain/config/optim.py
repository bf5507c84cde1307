"""Decides the optimizer and the learning rate over time."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from packtrain.config.base import Section
from packtrain.config.optimizers import OPTIMIZERS, OptimizerKind

# A type checker cannot read the names from the table.
if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[*OPTIMIZERS]

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class OptimConfig(Section):
    """AdamW (arXiv 1711.05101) with float32, 8-bit or 4-bit states, or Muon. Norms and biases are never decayed."""

    name: OptimizerName = Field("adamw", description=" ".join(f"`{n}`: {o.meaning}." for n, o in OPTIMIZERS.items()))
    lr: PositiveFloat = 6e-4
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay of matrices and embeddings, per step times the learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay of the running mean and mean square of the gradient."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean square."""
    momentum: Beta = 0.95
    """muon: decay of the running mean of a matrix's gradient."""

    @property
    def kind(self) -> OptimizerKind:
        return OPTIMIZERS[self.name]

    @model_validator(mode="after")
    def _check_momentum(self) -> Self:
        if not self.kind.orthogonalises and self.momentum != type(self).model_fields["momentum"].default:
            raise ValueError(
                f"optim.momentum={self.momentum} is for muon and has no effect with optim.name={self.name}; leave it out"
            )
        return self


class ScheduleConfig(Section):
    """Learning rate over time: a linear warm-up to optim.lr, then the named shape."""

    name: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """`cosine` and `linear` fall until the last step; `wsd` stays, then falls, here in a straight line (arXiv 2404.06395);
    `constant` stays."""
    warmup_steps: NonNegativeInt = 1000
    """Steps until the peak is reached."""
    min_lr_ratio: Fraction = 0.1
    """The floor that the rate ends at, as a share of optim.lr."""
    decay_fraction: Fraction = 0.2
    """wsd: share of all steps spent falling."""
