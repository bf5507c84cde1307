"""Decides what the ranks of a run send each other in a step: every collective with its bytes, as the code makes them.

Letters: N parameters, L layers.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packtrain.config.model import ModelConfig
from packtrain.config.optimizers import OPTIMIZERS
from packtrain.optim.stacks import stack_size
from packtrain.plan.activations import PrecisionName
from packtrain.plan.parameters import num_parameters, parameters_by_part

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]
# Bytes of a number in the matrix products of a block, in which FSDP sends its weights.
_WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2}
# DistributedDataParallel's buckets.
_BUCKET_BYTES = 25 * 2**20


@dataclass(frozen=True)
class Division:
    """How a model is divided among ranks: each copy over `num_shards` of the `world_size`."""

    world_size: int
    num_shards: int = 1

    @property
    def num_copies(self) -> int:
        return self.world_size // self.num_shards

    @property
    def mode(self) -> str:
        return "ddp" if self.num_shards == 1 else "fsdp" if self.num_copies == 1 else "hybrid"


@dataclass(frozen=True)
class Collective:
    """One kind of exchange in a step."""

    what: str
    kind: Kind
    count: int
    """In a step."""
    total_bytes: int
    """Of the whole tensors, all of that count together."""
    among: Literal["all", "shards", "copies"]
    """The ranks that take part: all, those that share a copy of the model, or those that have the same shard."""
    during: Literal["forward", "backward", "last backward", "update"]
    """What the devices compute meanwhile: passes of every micro-batch or of the last one, or nothing."""
    tail_bytes: int = 0
    """Of those bytes, what is ready only when the passes have ended."""


def list_collectives(
    model: ModelConfig,
    optimizer: str,
    division: Division,
    *,
    num_micro_batches: int,
    precision: PrecisionName,
    device_type: str = "cuda",
) -> list[Collective]:
    """Every exchange of a step but those of a few numbers (losses, norms), for `num_micro_batches` on each rank."""
    if division.world_size == 1:
        return []
    N, L, M = num_parameters(model), model.num_hidden_layers, num_micro_batches
    outer = _outer_parameters(model)
    block, width = (N - outer) // L, _WIDTHS[precision]
    if division.num_shards == 1:
        buckets = -(-4 * N // _BUCKET_BYTES)
        found = [
            Collective("gradients", "all-reduce", buckets, 4 * N, "all", "last backward", 4 * _last_parameters(model))
        ]
    else:
        found = [
            Collective("weights outside blocks", "all-gather", M, 4 * M * outer, "shards", "forward", 4 * M * outer),
            Collective("weights of blocks", "all-gather", L * M, width * M * L * block, "shards", "forward"),
            Collective("weights of blocks again", "all-gather", L * M, width * M * L * block, "shards", "backward"),
            Collective("gradients of blocks", "reduce-scatter", L * M, 4 * M * L * block, "shards", "backward"),
            Collective(
                "gradients outside blocks", "reduce-scatter", M, 4 * M * outer, "shards", "backward", 4 * M * outer
            ),
        ]
        if division.num_copies > 1:
            shard = 4 * N // division.num_shards
            tail = 4 * outer // division.num_shards
            found.append(Collective("gradients of shards", "all-reduce", L + 1, shard, "copies", "last backward", tail))
    # float16 lacks the range to orthogonalise in.
    return [*found, *_of_optimizer(model, optimizer, division, 2 if precision in ("bf16", "fp8") else 4, device_type)]


def matrix_shapes(model: ModelConfig) -> Counter[tuple[int, int]]:
    """The shapes of the blocks' matrices, [rows, columns], and how many there are of each."""
    D, F, K = model.hidden_size, model.intermediate_size, model.head_size
    H, G = model.num_attention_heads, model.kv_heads
    one = ((H * K, D), (G * K, D), (G * K, D), (D, H * K), (F, D), (F, D), (D, F))
    return Counter(one * model.num_hidden_layers)


def batches_of_matrices(count: int, num_elements: int, num_sharers: int, device_type: str) -> Iterator[int]:
    """How many matrices are in each batch that the ranks orthogonalise together, of `count` of one shape."""
    most = num_sharers * stack_size(num_elements, device_type)
    for first in range(0, count, most):
        yield min(most, count - first)


def _of_optimizer(
    model: ModelConfig, optimizer: str, division: Division, width: int, device_type: str
) -> Iterator[Collective]:
    """What an optimizer that orthogonalises sends; the others work on each rank's own part."""
    kind = OPTIMIZERS[optimizer]
    if not kind.orthogonalises:
        return
    is_sharded = division.num_shards > 1
    sharers = division.num_shards if is_sharded else division.world_size
    count, rows_sent, sent, results = 0, 0, 0, 0
    for (rows, columns), number in matrix_shapes(model).items():
        for together in batches_of_matrices(number, rows * columns, sharers, device_type):
            count += 1
            rows_sent += 4 * together * rows
            # Each rank sends and gets as many as any other, if need be zeros.
            whole = _fill(together, sharers) * (_fill(rows, sharers) if is_sharded else rows) * columns
            sent += 4 * whole
            results += width * whole
    if not is_sharded:
        yield Collective("orthogonalised updates", "all-gather", count, results, "all", "update", results)
        return
    yield Collective("updates to orthogonalise", "all-to-all", count, sent, "shards", "update", sent)
    yield Collective("orthogonalised updates", "all-to-all", count, results, "shards", "update", results)
    if kind.row_bytes:
        yield Collective("norms of rows", "all-gather", 2 * count, 2 * rows_sent, "shards", "update", 2 * rows_sent)


def _fill(count: int, sharers: int) -> int:
    """The next multiple of `sharers`."""
    return sharers * -(-count // sharers)


def _outer_parameters(model: ModelConfig) -> int:
    """Parameters outside the blocks: embedding, output and final norm."""
    parts = parameters_by_part(model)
    return parts["embedding"] + parts.get("output", 0) + model.hidden_size


def _last_parameters(model: ModelConfig) -> int:
    """Parameters whose gradient is ready only when the backward pass has ended: the embedding's."""
    return parameters_by_part(model)["embedding"]
