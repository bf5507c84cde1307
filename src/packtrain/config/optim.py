"""Decides the optimizer and the learning rate over time."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

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

# Settings of the optimizers that orthogonalise.
_MOMENTUM = ("momentum", "momentum_warmup_steps", "momentum_start")


class RateScale(Section):
    """Learning rates by what a parameter does, as multiples of optim.lr."""

    matrix: PositiveFloat = 1.0
    """The matrices of the blocks."""
    embedding: PositiveFloat = 1.0
    """The embedding, which is the output projection too if they are tied."""
    output: PositiveFloat = 1.0
    """The output projection, if it is not tied."""
    norm: PositiveFloat = 1.0
    """Gains of norms, and biases."""


class DecayScale(Section):
    """Weight decay by what a parameter does, as multiples of optim.weight_decay."""

    matrix: NonNegativeFloat = 1.0
    """The matrices of the blocks."""
    embedding: NonNegativeFloat = 1.0
    """The embedding, which is the output projection too if they are tied."""
    output: NonNegativeFloat = 1.0
    """The output projection, if it is not tied."""
    norm: NonNegativeFloat = 0.0
    """Gains of norms, and biases."""


class OptimConfig(Section):
    """AdamW (arXiv 1711.05101) with float32, 8-bit or 4-bit states, Muon or NorMuon. Norms and biases do not decay."""

    name: OptimizerName = Field("adamw", description=" ".join(f"`{n}`: {o.meaning}." for n, o in OPTIMIZERS.items()))
    lr: PositiveFloat = 6e-4
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices and embeddings, multiplied by the learning rate at each step."""
    decay_schedule: Literal["constant", "lr", "cosine"] = "constant"
    """The weight decay over time. `lr`: multiplied by the learning rate's share of optim.lr, too. `cosine`: falls to zero along
    half a cosine over the whole run."""
    cautious_decay: bool = False
    """Decay a weight only where the update has the same sign, and so shrinks it (arXiv 2510.12402). Not with low-bit states."""
    lr_scale: RateScale = RateScale()
    decay_scale: DecayScale = DecayScale()
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

    def list_misfits(self, name: str) -> dict[str, Any]:
        """Settings of this section that the optimizer `name` does not have, with the defaults that they need there."""
        kind = OPTIMIZERS[name]
        misfits: list[str] = []
        if not kind.orthogonalises:
            misfits += _MOMENTUM
        if kind.is_low_bit:
            misfits += ["cautious_decay"]
        defaults = {key: type(self).model_fields[key].default for key in misfits}
        return {key: value for key, value in defaults.items() if getattr(self, key) != value}

    @model_validator(mode="after")
    def _check_decay(self) -> Self:
        if self.kind.is_low_bit and self.cautious_decay:
            raise ValueError(
                f"optim.cautious_decay=true needs float32 states, and optim.name={self.name} has low-bit ones; write "
                "optim.name=adamw, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_momentum(self) -> Self:
        for name in _MOMENTUM:
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
    """`cosine` and `linear` decay until the last step. `wsd` (arXiv 2404.06395) is constant, then decays until the last
    step. `constant` does not decay."""
    warmup_steps: NonNegativeInt = 1000
    """Steps of the warm-up. A run that is not longer warms up for a tenth of its steps."""
    min_lr_ratio: Fraction = 0.1
    """The learning rate at the end of the decay, as a share of optim.lr."""
    decay_fraction: Fraction = 0.2
    """wsd: share of all steps in the decay, which follows the warm-up."""
    decay_shape: Literal["linear", "sqrt", "cosine"] = "linear"
    """wsd: how the rate falls. `sqrt`: by the root of the share of the decay that is over (arXiv 2405.18392), steep at first.
    `cosine`: along half a cosine."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.decay_shape != "linear" and self.name != "wsd":
            raise ValueError(
                f"schedule.decay_shape={self.decay_shape} applies only to wsd, and schedule.name={self.name}; write "
                "schedule.name=wsd, or leave it out"
            )
        return self
