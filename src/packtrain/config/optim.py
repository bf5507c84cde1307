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
    """AdamW (arXiv 1711.05101) with float32, 8-bit or 4-bit states, Muon or NorMuon. Weight decay never applies to norms and biases."""

    name: OptimizerName = Field("adamw", description=" ".join(f"`{n}`: {o.meaning}." for n, o in OPTIMIZERS.items()))
    lr: PositiveFloat = 6e-4
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices and embeddings, multiplied by the learning rate at each step."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay of the running mean and the running mean square of the gradient."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean square."""
    momentum: Beta = 0.95
    """muon, normuon: decay of the running mean of a matrix's gradient."""
    momentum_warmup_steps: NonNegativeInt = 0
    """muon, normuon: steps over which that decay rises linearly to optim.momentum, from optim.momentum_start. 0: none."""
    momentum_start: Beta = 0.85
    """muon, normuon: the decay at the first step of that warm-up."""

    @property
    def kind(self) -> OptimizerKind:
        return OPTIMIZERS[self.name]

    @model_validator(mode="after")
    def _check_momentum(self) -> Self:
        for name in ("momentum", "momentum_warmup_steps", "momentum_start"):
            value = getattr(self, name)
            if not self.kind.orthogonalises and value != type(self).model_fields[name].default:
                names = " and ".join(n for n, kind in OPTIMIZERS.items() if kind.orthogonalises)
                raise ValueError(
                    f"optim.{name}={value} applies only to {names}, and optim.name={self.name}; leave it out"
                )
        return self


class ScheduleConfig(Section):
    """The learning rate over time: a linear warm-up to optim.lr, then one of these shapes."""

    name: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """`cosine` and `linear` decay until the last step. `wsd` (arXiv 2404.06395) is constant, then decays linearly until the
    last step. `constant` does not decay."""
    warmup_steps: NonNegativeInt = 1000
    """Steps of the warm-up. A run that is not longer warms up for a tenth of its steps."""
    min_lr_ratio: Fraction = 0.1
    """The learning rate at the end of the decay, as a share of optim.lr."""
    decay_fraction: Fraction = 0.2
    """wsd: share of all steps in the decay, which follows the warm-up."""
