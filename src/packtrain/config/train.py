"""Decides how long and how a model is trained."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from packtrain.config.base import Section


class TrainConfig(Section):
    """Length, batch and precision of a run."""

    steps: PositiveInt | None = None
    """Optimizer updates. Give this or train.tokens; neither: one epoch."""
    tokens: PositiveInt | None = None
    """Training length in tokens, rounded down to whole steps."""
    anneal_from: str | None = None
    """A run or a checkpoint of one whose learning rate is constant there: this run begins with its weights, optimizer and
    place in the data, and its rate falls from the first step to the last. `train --anneal-from` sets it."""
    global_batch_tokens: PositiveInt = 524_288
    """Tokens of one step, over all ranks and micro-batches."""
    micro_batch_size: PositiveInt = 8
    """Rows of one forward pass on one rank."""
    seed: int = Field(default=1337, ge=0)
    """Keys the initial weights and the order of the rows."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    """Of matrix products; weights and optimizer stay float32. `auto`: bf16 where the device computes it, else fp32.
    `fp8`: the products of the blocks' linear layers through torchao, everything else in bf16; for GPUs of compute capability
    8.9 or more (Ada, Hopper). Validation in training takes them too; `evaluate`, samples and exports are as of a bf16 run, and
    MFU counts against the bf16 peak."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile; `auto`: on for CUDA, off for the CPU, where runs are too short to earn the compile time back."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of log²(Z) of each target's softmax, whose gradient keeps logits from drifting; 1e-4 in PaLM (arXiv 2204.02311,
    section 5). Losses that are shown go without it."""
    activation_gb: PositiveFloat | None = None
    """GB (10⁹ bytes) that the activations of a micro-batch may take. As many blocks as that needs are computed again in the
    backward pass instead of kept. Unset: all are kept."""
    device: str = "auto"
    """`auto`: a CUDA device if there is one, else the CPU."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.tokens is not None:
            raise ValueError(
                f"train.steps={self.steps} and train.tokens={self.tokens} both set the length; keep one "
                "(`train.steps=` or `train.tokens=`, with nothing behind it, takes back what a preset sets)"
            )
        if self.tokens is not None and self.tokens < self.global_batch_tokens:
            raise ValueError(
                f"train.tokens={self.tokens} is less than one step of train.global_batch_tokens="
                f"{self.global_batch_tokens}; raise the first or lower the second"
            )
        return self
