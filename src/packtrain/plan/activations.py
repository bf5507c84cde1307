"""Decides how many bytes the forward pass keeps for the backward pass, by what computes it; needs no torch.

Letters: D hidden size, F intermediate size, L layers, H query heads, G key-value heads, K head dim; w bytes of a number that
a matrix product reads.
"""

from typing import Literal

from packtrain.config.model import ModelConfig
from packtrain.plan.parameters import parameters_by_part

PrecisionName = Literal["fp32", "bf16", "fp16", "fp8"]
Kernels = Literal["cpu", "eager", "compiled"]
"""What computes the blocks: the CPU's kernels with gradients written by hand, torch's own one by one, or those that
torch.compile makes. Each keeps something else, as a test shows."""


def choose_kernels(device: str, is_compiled: bool | Literal["auto"]) -> Kernels:
    """What computes the blocks on a `device` under train.compile."""
    if is_compiled is True or (is_compiled == "auto" and device == "cuda"):
        return "compiled"
    return "cpu" if device == "cpu" else "eager"


def width_of(precision: PrecisionName) -> int:
    """Bytes per number that a matrix product reads; for fp8, per number as it is kept, and in attention and the loss."""
    return 4 if precision == "fp32" else 2


def block_bytes_per_token(
    config: ModelConfig, precision: PrecisionName, kernels: Kernels, has_dropout: bool = False
) -> int:
    """Bytes that a block keeps of each token."""
    D, F, K, width = config.hidden_size, config.intermediate_size, config.head_size, width_of(precision)
    H, G = config.num_attention_heads, config.kv_heads
    attention = width * (2 * H + 2 * G) * K + 4 * H  # q, k, v, the result and its log-sum-exp
    masks = 2 * D * has_dropout  # a byte for each number that attention and the feed-forward part add
    # Of each norm its input, float32 like the residual stream, and 1/rms. Of a compiled block only the first norm's input:
    # the second is the sum of that and what attention adds, in its own width.
    inputs = 4 * D + width * D if kernels == "compiled" else 8 * D
    norms = inputs + 2 * 4
    if kernels == "cpu":
        # The norms' outputs are recomputed, and so is the product of gate and up.
        head_norms = (H + G) * (width * K + 4) if config.qk_norm else 0
        return norms + attention + head_norms + width * 2 * F + masks
    # The norms' outputs, which products read. A norm of heads reads its input as float32, unless it is part of a kernel.
    norms += 2 * width * D
    head_norms = (H + G) * ((width if kernels == "compiled" else 4) * K + 4) if config.qk_norm else 0
    # gate, up and silu(gate)·up; torch's own kernels keep silu(gate) too.
    return norms + attention + head_norms + width * (3 if kernels == "compiled" else 4) * F + masks


def activation_bytes(
    config: ModelConfig,
    tokens: int,
    precision: PrecisionName,
    num_recomputed: int = 0,
    has_dropout: bool = False,
    kernels: Kernels = "cpu",
) -> int:
    """Bytes that the forward pass of `tokens` keeps, if the first `num_recomputed` blocks keep their inputs only."""
    D, width = config.hidden_size, width_of(precision)
    kept = (config.num_hidden_layers - num_recomputed) * block_bytes_per_token(config, precision, kernels, has_dropout)
    # The inputs of recomputed blocks; the final norm's input and 1/rms; the input of the output projection. Dropout of the
    # embedded tokens keeps a byte for each number.
    kept += D * has_dropout
    return tokens * (kept + num_recomputed * 4 * D + 4 * D + 4 + width * D)


def blocks_to_recompute(
    config: ModelConfig,
    tokens: int,
    precision: PrecisionName,
    budget_bytes: float | None,
    has_dropout: bool = False,
    kernels: Kernels = "cpu",
) -> int | None:
    """Fewest blocks to recompute so that the activations of `tokens` fit the budget; None if even all are too few.

    Compiled blocks are never recomputed as a whole: see `share_to_keep`.
    """
    if budget_bytes is None:
        return 0

    def fits(count: int) -> bool:
        return activation_bytes(config, tokens, precision, count, has_dropout, kernels) <= budget_bytes

    counts = range(config.num_hidden_layers + 1)
    least = next((n for n in counts if fits(n)), None)
    return 0 if least is not None and kernels == "compiled" else least


def share_to_keep(
    config: ModelConfig,
    tokens: int,
    precision: PrecisionName,
    budget_bytes: float | None,
    has_dropout: bool = False,
) -> float:
    """`activation_memory_budget` of torch's compiler, with which the activations of `tokens` fit the budget; 1 without one.

    The compiler keeps what is costly to compute again, up to this share of the way from a block's arguments alone (0) to
    all that it would keep (1). Both ends count what it counts: the arguments with the block's weights, in float32, and what
    is kept with their copies for matrix products, in 16 bits.
    """
    L, D = config.num_hidden_layers, config.hidden_size
    if budget_bytes is None:
        return 1.0
    parts = parameters_by_part(config)
    outside = activation_bytes(config, tokens, precision, L, has_dropout) - tokens * L * 4 * D
    block = (parts["attention"] + parts["feed-forward"] + parts["norms"] - D) // L
    wanted = (budget_bytes - outside) / L
    least = tokens * 4 * D + 4 * block
    kept = tokens * block_bytes_per_token(config, precision, "compiled", has_dropout)
    if wanted >= kept:
        return 1.0
    most = kept + width_of(precision) * block
    return 0.0 if most <= least else min(1.0, max(0.0, (wanted - least) / (most - least)))


def largest_block_bytes(config: ModelConfig, precision: PrecisionName, kernels: Kernels, has_dropout: bool) -> int:
    """Bytes per token that one block has at once while it is computed again."""
    # Gradients inside the feed-forward part and of its norm. In a block that was kept, they take less than is freed.
    passing = width_of(precision) * 2 * (config.intermediate_size + config.hidden_size)
    return block_bytes_per_token(config, precision, kernels, has_dropout) + passing
