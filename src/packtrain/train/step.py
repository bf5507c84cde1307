"""Decides what one optimizer step is: mean loss over the global batch, gradient, clipping, update. Knows no files and no clock."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from packtrain.config.train import TrainConfig
from packtrain.data.feed.loader import Batch
from packtrain.errors import DatasetError
from packtrain.model.dropout import Dropout, row_keys
from packtrain.parallel.ranks import Ranks
from packtrain.parallel.shards import gather_whole
from packtrain.parallel.wrap import defer_sync
from packtrain.plan.activations import PrecisionName

NOT_FINITE = "not finite"
# What autocast computes in. With fp8, the layers that use it round their operands themselves.
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """How matrix products are computed. The scaler scales the loss for fp16 and does nothing otherwise."""

    name: PrecisionName
    device_type: str
    scaler: torch.amp.GradScaler

    @property
    def dtype(self) -> torch.dtype | None:
        """None: float32."""
        return _DTYPES[self.name]

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device_type, dtype=self.dtype)


@dataclass(frozen=True)
class Placement:
    """Where this process computes and how, the same for every step of a run."""

    device: torch.device
    precision: Precision
    micro_batch_size: int
    """Rows of one forward and backward pass."""
    ranks: Ranks = field(default_factory=Ranks)
    is_sharded: bool = False
    """Whether each rank holds only a part of the weights. Then all ranks must call the model together."""
    is_compiled: bool = False
    """Whether the model is compiled. Then a micro-batch of another number of rows would be compiled again."""


@dataclass(frozen=True)
class StepResult:
    """What a step did. `loss` (nats per target) and `grad_norm` (before clipping) are those of the global batch."""

    loss: float
    grad_norm: float
    skipped: str | None = None
    """Why the weights stayed as they were."""

    @property
    def is_applied(self) -> bool:
        return self.skipped is None


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    placement: Placement,
    *,
    grad_clip: float,
    z_loss: float = 0.0,
    dropout: Dropout | None = None,
    judge: Callable[[float, float], str | None] | None = None,
    before_update: Callable[[], None] | None = None,
) -> StepResult:
    """One update from this rank's rows of a global batch.

    The loss is the mean over every target of the global batch, so it does not depend on how rows are divided into
    micro-batches and over ranks. If loss or gradient is not finite on any rank, or `judge` gives a reason against
    finite ones, the weights stay as they are on every rank. `dropout` has keys for this rank's rows. `before_update` is
    called just before weights and optimizer state change. Waits for the device once, to look at the loss and the norm.
    """
    ranks, precision, size = placement.ranks, placement.precision, placement.micro_batch_size
    loss_sum = torch.zeros((), device=placement.device)
    for first in range(0, len(batch.rows), size):
        rows = batch.rows[first : first + size].to(placement.device)
        with defer_sync(model, is_last=first + size >= len(batch.rows)):
            with precision.autocast():
                micro_sum = model(
                    rows.inputs_BT,
                    rows.targets_BT,
                    segments_BT=rows.segments_BT,
                    positions_BT=rows.positions_BT,
                    z_loss=z_loss,
                    **_dropout_of(dropout, slice(first, first + size), placement.device),
                )
            # DDP and FSDP average gradients over ranks, but the step averages over targets.
            precision.scaler.scale(micro_sum * (ranks.world_size / batch.num_targets)).backward()
        loss_sum += micro_sum.detach()
    precision.scaler.unscale_(optimizer)
    # The list of gradients gets no name: some optimizers free each gradient once it is used, and a name would keep it.
    norm = gather_whole(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    # The norms are equal, but a sum of them gives every rank the same bits to decide by, and spreads NaN to all ranks.
    mine = torch.stack([loss_sum / batch.num_targets, norm / ranks.world_size])
    loss, grad_norm = ranks.sum(mine).tolist()
    skipped: str | None = NOT_FINITE
    if math.isfinite(loss) and math.isfinite(grad_norm):
        skipped = judge(loss, grad_norm) if judge else None
    if skipped is None:
        if before_update is not None:
            before_update()
        if 0 < grad_clip < grad_norm:
            nn.utils.clip_grads_with_norm_(model.parameters(), grad_clip, norm)
        # Not `scaler.step`, which would wait for the device to check again that every gradient is finite.
        optimizer.step()
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, grad_norm, skipped)


def _dropout_of(dropout: Dropout | None, rows: slice, device: torch.device) -> dict[str, Any]:
    """The arguments of the model for dropout in some of a rank's rows."""
    if dropout is None:
        return {}
    return {"dropout": dropout.rate, "keys_B2": dropout.keys_B2[rows].to(device, non_blocking=True)}


def draw_dropout(config: TrainConfig, step: int, num_rows: int, rank: int) -> Dropout | None:
    """Dropout of a step, for the `num_rows` rows that each rank has; None if the run has none."""
    if not config.dropout:
        return None
    rows = range(rank * num_rows, (rank + 1) * num_rows)
    return Dropout(config.dropout, row_keys(config.seed, step, rows))


def check_ids(batch: Batch, vocab_size: int) -> None:
    """Raises DatasetError for a token id that the model has no row for: the dataset is not what its manifest says."""
    largest = max(int(np.max(ids.numpy())) for ids in (batch.rows.inputs_BT, batch.rows.targets_BT))
    if largest >= vocab_size:
        raise DatasetError(
            f"the dataset has token id {largest}, but the model's ids end below model.vocab_size={vocab_size}; "
            "run `packtrain verify` on the dataset, or prepare it again"
        )
