"""Decides how the memory of training is counted before anything is built; needs no torch.

Letters: N parameters, D hidden size, F intermediate size, V vocabulary, L layers, H query heads, G key-value heads,
K head dim.
"""

from packtrain.config.model import ModelConfig
from packtrain.config.optimizers import OPTIMIZERS, SMALLEST_QUANTISED
from packtrain.config.run import RunConfig
from packtrain.model.chunks import WIDE_ROWS, chunk_rows
from packtrain.plan.activations import (
    Kernels,
    PrecisionName,
    activation_bytes,
    blocks_to_recompute,
    choose_kernels,
    largest_block_bytes,
    width_of,
)
from packtrain.plan.parameters import num_parameters, parameters_by_part

# Bytes per number in the copies of the blocks' weights that matrix products read. fp8: what a compiled step may keep for
# its backward pass; an eager step makes them again there.
_COPY_BYTES = {"fp32": 0, "bf16": 2, "fp16": 2, "fp8": 1}
# Beside the tensors. CPU: Python, torch and its libraries, measured. GPU: what the driver and kernels take, assumed.
PROCESS_BYTES = {"cpu": 43 * 10**7}
PROCESS_BYTES_ELSEWHERE = 10**9
# The allocator's gaps and the kernels' temporary buffers, as a share of the tensors; assumed.
ALLOCATOR_SHARE = 0.10
# The same for the heap of a CPU process, which keeps freed memory; measured (docs/performance.md, "Plan and run").
HEAP_SHARE = 0.18
_LARGEST_MICRO_BATCH = 4096
# Copies that two threads of gloo keep of the largest thing that is gathered and summed; fitted to measurements.
_GLOO_COPIES = 5


def memory(
    config: ModelConfig,
    micro_batch_size: int,
    seq_len: int,
    optimizer: str = "adamw",
    precision: PrecisionName = "fp32",
    device: str = "cpu",
    num_recomputed: int = 0,
    num_shards: int = 1,
    num_lanes: int = 1,
    has_dropout: bool = False,
    kernels: Kernels | None = None,
    budget_bytes: float | None = None,
    has_average: bool = False,
) -> dict[str, int]:
    """Bytes that one device keeps for each part of training; a kernel's temporary buffers are not counted.

    weights, gradients, optimizer: float32, except for low-bit states. average: of the weights, if there is one.
    copies: the weights in the precision of the matrix products.
    activations: what the forward pass keeps for the backward pass, which depends on the `kernels` (default: those of a run
    with train.compile=auto); if it is compiled, at most `budget_bytes`.
    block inputs: all that is kept of the first `num_recomputed` blocks; recomputed: what one of them takes in its turn, or
    one compiled block of which only a part is kept.
    logits: the loss's chunk on the CPU. Each of `num_lanes` has its own chunk and its own gradients.
    loss: what else the loss holds, and the gradients that it computes ahead.

    If `num_shards` is above 1, weights, gradients and optimizer states are one rank's part, and there are also
    gathered: everything outside the blocks, whole, and the weights of three blocks (in use, just received, on their way);
    block gradients, outer gradients: those of one block and of everything outside the blocks, whole, as they are
    computed and as they are summed; exchange: what gloo copies for itself on the CPU.
    """
    tokens = micro_batch_size * seq_len
    N, L = num_parameters(config), config.num_hidden_layers
    width, parts = width_of(precision), parameters_by_part(config)
    kernels = kernels or choose_kernels(device, "auto")
    copies = _COPY_BYTES[precision] * (parts["attention"] + parts["feed-forward"])
    if kernels == "cpu":
        # Elsewhere autocast, or a compiled block, keeps every copy until the forward pass ends.
        copies = copies * (L - num_recomputed) // L
    rows = min(tokens // num_lanes, chunk_rows(config.vocab_rows, device))
    chunk = (width * rows + (4 * min(WIDE_ROWS, rows) if width == 2 else 0)) * config.vocab_rows
    inputs = tokens * num_recomputed * 4 * config.hidden_size
    kept = activation_bytes(config, tokens, precision, num_recomputed, has_dropout, kernels)
    is_reduced = kernels == "compiled" and budget_bytes is not None and budget_bytes < kept
    again = tokens * largest_block_bytes(config, precision, kernels, has_dropout)
    return {
        "weights": 4 * N // num_shards,
        "copies": copies if num_shards == 1 or precision == "fp8" else 0,
        "gradients": num_lanes * 4 * N // num_shards,
        "optimizer": _optimizer_bytes(config, optimizer) // num_shards,
        **({"average": 4 * N // num_shards} if has_average else {}),
        "activations": (round(budget_bytes) if is_reduced and budget_bytes is not None else kept) - inputs,
        "block inputs": inputs,
        "recomputed": again if num_recomputed or is_reduced else 0,
        "logits": num_lanes * chunk if device == "cpu" else 0,
        "loss": _loss_bytes(config, tokens, width, device, kernels),
        **(_exchanged_bytes(config, width, device) if num_shards > 1 else {}),
    }


def peak_bytes(parts: dict[str, int], *, accumulates: bool) -> int:
    """The most bytes of the `memory` parts that exist at the same time.

    With one micro-batch per step, gradients appear while activations are freed, so only the larger of the two counts.
    With accumulation, the gradients of earlier micro-batches exist all the time.
    """
    fixed = parts["weights"] + parts["copies"] + parts["optimizer"] + parts.get("average", 0)
    if "gathered" in parts:
        return fixed + _sharded_peak(parts, accumulates=accumulates)
    # The first blocks are recomputed after the activations of the others are freed.
    passing = parts["block inputs"] + max(parts["activations"] + parts["loss"] + parts["logits"], parts["recomputed"])
    gradients = parts["gradients"]
    return fixed + (gradients + passing if accumulates else max(gradients + parts["recomputed"], passing))


def _sharded_peak(parts: dict[str, int], *, accumulates: bool) -> int:
    """Peak of what changes during a step if each rank holds part of the weights."""
    gradients = parts["gradients"]
    loss = parts["loss"] + parts["logits"]
    forward = parts["block inputs"] + parts["activations"] + loss + parts["block gradients"]
    backward = parts["block inputs"] + parts["recomputed"] + parts["block gradients"] + parts["outer gradients"] // 2
    last = max(backward, parts["outer gradients"])
    return parts["gathered"] + parts["exchange"] + max(gradients + last, forward + (gradients if accumulates else 0))


def needed_bytes(
    config: RunConfig, rows: int, precision: PrecisionName, device: str, *, accumulates: bool, num_shards: int = 1
) -> int | None:
    """Memory that a process needs to train with micro-batches of `rows`; None if train.activation_gb cannot be kept."""
    tokens = rows * config.data.seq_len
    drops = config.train.dropout > 0
    kernels, budget = choose_kernels(device, config.train.compile), config.activation_budget_bytes
    count = blocks_to_recompute(config.model, tokens, precision, budget, drops, kernels)
    if count is None:
        return None
    lanes = config.num_lanes(rows) if device == "cpu" and num_shards == 1 else 1
    shape = (config.model, rows, config.data.seq_len)
    averages = config.train.average != "none"
    parts = memory(
        *shape, config.optim.name, precision, device, count, num_shards, lanes, drops, kernels, budget, averages
    )
    if device == "cpu" and num_shards > 1 and config.train.activation_gb is None:
        # Gradients do not fit all the gaps that activations leave.
        accumulates = True
    peak = peak_bytes(parts, accumulates=accumulates)
    return round(peak * (1 + _heap_share(config, device, num_shards))) + process_bytes(config.optim.name, device)


def _heap_share(config: RunConfig, device: str, num_shards: int) -> float:
    """HEAP_SHARE where it was measured: a process with the whole model whose freed memory stays with it."""
    return HEAP_SHARE if device == "cpu" and num_shards == 1 and config.train.activation_gb is None else 0.0


def process_bytes(optimizer: str, device: str) -> int:
    """Memory beside the tensors. On the CPU, where the process has it, also that of the optimizer's library."""
    if device in PROCESS_BYTES:
        return PROCESS_BYTES[device] + OPTIMIZERS[optimizer].library_bytes
    return PROCESS_BYTES_ELSEWHERE


def demand_bytes(
    config: RunConfig, rows: int, precision: PrecisionName, device: str, *, num_shards: int = 1
) -> int | None:
    """Memory that a device must have for micro-batches of `rows`: with gradients that are accumulated, and the allocator's share.

    None if train.activation_gb cannot be kept.
    """
    needed = needed_bytes(config, rows, precision, device, accumulates=True, num_shards=num_shards)
    base = process_bytes(config.optim.name, device)
    assumed = 0.0 if _heap_share(config, device, num_shards) else ALLOCATOR_SHARE
    return None if needed is None else round(base + (needed - base) * (1 + assumed))


def fits(
    config: RunConfig, rows: int, device_bytes: int, precision: PrecisionName, device: str, *, num_shards: int = 1
) -> bool:
    """Whether micro-batches of `rows` fit, with gradients that are accumulated."""
    demand = demand_bytes(config, rows, precision, device, num_shards=num_shards)
    return demand is not None and demand <= device_bytes


def largest_micro_batch(
    config: RunConfig, device_bytes: int, precision: PrecisionName, device: str, *, num_shards: int = 1
) -> int:
    """Most rows that fit on each rank that shares a copy of the model; 0 if not even one does."""
    low, high = 0, min(_LARGEST_MICRO_BATCH, config.rows_per_step // num_shards) + 1
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = fits(config, middle, device_bytes, precision, device, num_shards=num_shards)
        low, high = (middle, high) if is_enough else (low, middle)
    return low


def _optimizer_bytes(config: ModelConfig, optimizer: str) -> int:
    N, parts, kind = num_parameters(config), parameters_by_part(config), OPTIMIZERS[optimizer]
    if kind.is_low_bit and config.hidden_size < SMALLEST_QUANTISED:
        return int(kind.state_bytes * (N - parts["norms"])) + 8 * parts["norms"]
    if kind.matrix_bytes is None:
        return int(kind.state_bytes * N)
    matrices = parts["attention"] + parts["feed-forward"]
    attention = (config.num_attention_heads + 2 * config.kv_heads) * config.head_size + config.hidden_size
    rows = config.num_hidden_layers * (attention + 2 * config.intermediate_size + config.hidden_size)
    return int(kind.state_bytes * (N - matrices) + kind.matrix_bytes * matrices) + kind.row_bytes * rows


def _exchanged_bytes(config: ModelConfig, width: int, device: str) -> dict[str, int]:
    """Weights and gradients that FSDP2 holds whole for a time; everything outside the blocks stays float32."""
    parts = parameters_by_part(config)
    outer = parts["embedding"] + parts.get("output", 0) + config.hidden_size
    block = (num_parameters(config) - outer) // config.num_hidden_layers
    return {
        "gathered": 4 * outer + 3 * width * block,
        # Once as computed, once in float32 as they are summed.
        "block gradients": (width + 4) * block,
        "outer gradients": 2 * 4 * outer,
        "exchange": _GLOO_COPIES * 4 * outer if device == "cpu" else 0,
    }


def _loss_bytes(config: ModelConfig, tokens: int, width: int, device: str, kernels: Kernels) -> int:
    VD = config.vocab_rows * config.hidden_size
    copies = 2 * width * VD if width == 2 else 0  # the weight in this precision, and its gradient
    if device == "cpu":
        chunk = 0  # counted as `logits`
    else:
        # The logits and their gradient. Between them, torch's own kernels write two float32 copies of the softmax, and of
        # float32 logits none; a compiled chunk writes nothing.
        logits = min(tokens, chunk_rows(config.vocab_rows, device)) * config.vocab_rows
        chunk = (2 * width + (8 if width == 2 and kernels != "compiled" else 0)) * logits
    return copies + chunk + 4 * VD + 4 * tokens * config.hidden_size


def checkpoint_bytes(config: RunConfig) -> int:
    """Size of one checkpoint: weights in float32, the optimizer's states, and the average of the weights if there is one."""
    averages = config.train.average != "none"
    parts = memory(config.model, 1, config.data.seq_len, config.optim.name, has_average=averages)
    return parts["weights"] + parts["optimizer"] + parts.get("average", 0)
