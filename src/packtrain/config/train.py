"""Decides how long and how a model is trained."""

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from packtrain.config.base import Section

# As torch, transformers and litgpt call them.
_PRECISIONS = {
    **dict.fromkeys(("bfloat16", "bf16-mixed"), "bf16"),
    **dict.fromkeys(("float16", "half", "16-mixed"), "fp16"),
    **dict.fromkeys(("float32", "float", "32-true"), "fp32"),
}


class TrainConfig(Section):
    """Length, batch and precision of a run."""

    steps: PositiveInt | None = None
    """Optimizer updates. Set this, train.tokens or train.epochs. If none is set: one epoch."""
    tokens: PositiveInt | None = None
    """Length of the run in tokens, rounded down to whole steps."""
    epochs: float | None = Field(default=None, gt=0, le=1_000_000)
    """Length of the run in passes over all of its datasets, rounded up to whole steps."""
    stop_after: PositiveInt | None = None
    """End the run early after this many validations in a row without a lower validation loss. Each validated step is then
    saved, the best one is kept, and `export` takes it. Unset: the run has its whole length."""
    anneal_from: str | None = None
    """A run, or a checkpoint of one, whose learning rate is constant there. The new run starts from its weights, optimizer
    and place in the data, and decays the learning rate from its first step to its last. `train --anneal-from` sets it."""
    init_from: str | None = None
    """A Llama or Qwen3 from elsewhere whose weights the run starts from: a Hugging Face folder, a GGUF or a llama2.c file. The
    model's shape is theirs, and the learning rate warms up again. Only the start reads them. `train --init-from` sets it."""
    continue_from: str | None = None
    """A run, or a checkpoint of one, whose weights a new run starts from at step 0, with its optimizer's state if optim.name is
    the same, and at its place in the data if that is the same. Data, length and schedule may be others; the learning rate
    warms up again. `train --continue-from` sets it."""
    extend_vocab: bool = False
    """With train.init_from or train.continue_from: train on a dataset with another tokenizer than the model's. Rows of the
    embedding and the output projection are kept for tokens that both have, and are the mean row for new ones."""
    global_batch_tokens: PositiveInt = 524_288
    """Tokens in one step, over all ranks and micro-batches."""
    micro_batch_size: PositiveInt | Literal["auto"] = 8
    """Rows in one forward pass on one rank. `auto`: on a CUDA GPU the largest power of two that its memory holds by the plan, up
    to a rank's rows in a step; elsewhere 8. The run keeps what it chose; a number that is typed later wins."""
    seed: int = Field(default=1337, ge=0)
    """Seed of the initial weights and of the order of the rows."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    """Precision of matrix products; weights and optimizer states stay in float32. `auto`: bf16 if the device supports it,
    else fp16 on a CUDA device and fp32 on others. `fp8`: the linear layers of the blocks in fp8 through torchao, everything
    else in bf16; needs a GPU of compute capability 8.9 or more (Ada, Hopper). Validation during training uses fp8 as well.
    `evaluate`, samples and exports are as for a bf16 run, and MFU is relative to the bf16 peak. `float32`, `bfloat16`,
    `float16` and `half` are read as well."""
    compile: bool | Literal["auto"] = "auto"
    """Use torch.compile for each block and for the loss. `auto`: on CUDA only; on a CPU, runs are too short to make up for the
    compile time."""
    deterministic: bool = False
    """On a CUDA GPU, use only kernels that add in a fixed order, so that a run that is resumed with the same GPUs, libraries and
    settings ends bitwise the same; slower, by how much has not been measured. An operation without such a kernel ends the
    run with a message. On a CPU every run is bitwise the same."""
    attention: Literal["auto", "torch", "flash", "cudnn", "efficient"] = "auto"
    """Kernel of causal attention on a CUDA GPU, in 16 bits. `auto`: a new run measures all three at its own shape, in under a
    second, and notes the fastest here, in its config.toml; `torch`: torch's own choice. With document masks FlexAttention
    computes it, whatever is set."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest global norm of the gradient; 0 turns clipping off."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of log²(Z) of the softmax, which keeps logits from drifting; 1e-4 in PaLM (arXiv 2204.02311, section 5). The
    reported losses do not include it."""
    dropout: float = Field(default=0.0, ge=0.0, le=0.9)
    """Share of the numbers that training sets to zero in the embedded tokens and in what each attention and feed-forward part
    adds to the residual stream (Srivastava et al., JMLR 15, 2014). For text that is read many times; 0: none. Validation,
    `generate` and exports have none, so the training loss is then above the validation loss of the same text."""
    average: Literal["none", "ema", "tail"] = "none"
    """Average the weights over the steps. `ema`: their exponential moving average; `tail`: their mean over the last steps.
    Validation, the best checkpoint and samples then use the averages, and `evaluate`, `generate`, `serve` and `export` too,
    unless `--no-average` is given. Training itself does not change. Takes 4 more bytes of memory for each parameter."""
    average_half_life_steps: PositiveFloat | None = None
    """ema: steps in which a step's share in the average halves. If neither half-life is set: a hundredth of the run."""
    average_half_life_tokens: PositiveInt | None = None
    """ema: the same in tokens."""
    average_share: float = Field(default=0.2, gt=0.0, le=1.0)
    """tail: share of all steps that are averaged, the last ones."""
    activation_gb: PositiveFloat | None = None
    """Most memory for the activations of a micro-batch, in GB (10⁹ bytes). Activation checkpointing recomputes as many blocks
    in the backward pass as this needs. A compiled model recomputes the cheapest part of every block instead (torch's
    `activation_memory_budget`). Unset: nothing is recomputed."""
    device: str = "auto"
    """Device such as `cpu` or `cuda`. `auto`: a CUDA device if there is one, else the CPU."""

    @field_validator("precision", mode="before")
    @classmethod
    def _read_precision(cls, value: Any) -> Any:
        return _PRECISIONS.get(value.removeprefix("torch."), value) if isinstance(value, str) else value

    @property
    def given_weights(self) -> str | None:
        """What the run's first weights are read from; None if they are drawn from train.seed."""
        return self.init_from or self.continue_from or self.anneal_from

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        given = [name for name in ("init_from", "continue_from", "anneal_from") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"train.{given[0]} and train.{given[1]} both give the run its first weights; keep one of them"
            )
        if self.extend_vocab and given not in (["init_from"], ["continue_from"]):
            raise ValueError(
                "train.extend_vocab needs train.init_from or train.continue_from; leave it out, or add one"
            )
        return self

    @model_validator(mode="after")
    def _average_has_its_settings(self) -> Self:
        owners = {"average_half_life_steps": "ema", "average_half_life_tokens": "ema", "average_share": "tail"}
        for name, owner in owners.items():
            value = getattr(self, name)
            if self.average != owner and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"train.{name}={value} applies only to train.average={owner}, and it is {self.average}; write "
                    f"train.average={owner}, or leave it out"
                )
        if self.average_half_life_steps is not None and self.average_half_life_tokens is not None:
            raise ValueError(
                f"train.average_half_life_steps={self.average_half_life_steps:g} and train.average_half_life_tokens="
                f"{self.average_half_life_tokens} both set the half-life; keep one of them"
            )
        return self

    @model_validator(mode="after")
    def _attention_adds_in_order(self) -> Self:
        if self.deterministic and self.attention in ("cudnn", "efficient"):
            raise ValueError(
                f"train.deterministic=true needs gradients of attention that are summed in a fixed order, which "
                f"train.attention={self.attention} does not do; write train.attention=flash, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [name for name in ("steps", "tokens", "epochs") if getattr(self, name) is not None]
        if len(given) > 1:
            first, second = given[:2]
            raise ValueError(
                f"train.{first}={getattr(self, first)} and train.{second}={getattr(self, second)} both set the length; keep one "
                "of them"
            )
        if self.tokens is not None and self.tokens < self.global_batch_tokens:
            raise ValueError(
                f"train.tokens={self.tokens} is less than one step of train.global_batch_tokens="
                f"{self.global_batch_tokens}; raise the first or lower the second"
            )
        return self
