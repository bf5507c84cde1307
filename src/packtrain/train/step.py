"""Decides what one optimizer step is: mean loss over the global batch, gradient, clipping, update. Knows no files and no clock."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from packtrain.data.feed.loader import Batch
from packtrain.parallel.ranks import Ranks
from packtrain.parallel.shards import gather_whole
from packtrain.parallel.wrap import defer_sync

NOT_FINITE = "not finite"


@dataclass(frozen=True)
class StepResult:
    """What a step did. `loss` in nats per target and `grad_norm` before clipping are those of the global batch."""

    loss: float
    grad_norm: float
    skipped: str | None = None
    """Why the weights stayed as they were."""

    @property
    def is_applied(self) -> bool:
        return self.skipped is None


@dataclass(frozen=True)
class Precision:
    """How matrix products are computed: `dtype` None is float32; the scaler does nothing but for float16."""

    device_type: str
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler

    def autocast(self) -> AbstractContextManager[None]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    *,
    micro_batch_size: int,
    grad_clip: float,
    precision: Precision,
    ranks: Ranks,
    device: torch.device,
    z_loss: float = 0.0,
    judge: Callable[[float, float], str | None] | None = None,
    before_update: Callable[[], None] | None = None,
) -> StepResult:
    """One update from this rank's rows of a global batch.

    The loss is the mean over every unmasked target of the global batch, over micro-batches and ranks, however they are
    spread over rows. Where loss or gradient is not finite on any rank, or `judge` says of finite ones why not, the
    weights stay as they are on all of them. `before_update` is called when weights and optimizer state are about to
    change. Waits for the device once, to look at the loss and the norm.
    """
    loss_sum = torch.zeros((), device=device)
    for micro, is_last in _micro_batches(batch, micro_batch_size, device):
        with defer_sync(model, is_last):
            with precision.autocast():
                micro_sum = model(
                    micro.inputs_BT,
                    micro.targets_BT,
                    segments_BT=micro.segments_BT,
                    positions_BT=micro.positions_BT,
                    z_loss=z_loss,
                )
            # Both ways of spreading a model average over ranks, and the step averages over targets.
            precision.scaler.scale(micro_sum * (ranks.world_size / batch.num_targets)).backward()
        loss_sum += micro_sum.detach()
    precision.scaler.unscale_(optimizer)
    # Not by a name: nothing but the parameters may hold gradients when an optimizer lets go of them one by one.
    norm = gather_whole(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    # The mean of equal norms, so that all ranks decide by the same bits, and what is not finite on one is so on all.
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
        # Not by way of the scaler: it would wait for the device, to see again that every gradient is finite.
        optimizer.step()
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, grad_norm, skipped)


@dataclass(frozen=True)
class _MicroBatch:
    inputs_BT: Tensor
    targets_BT: Tensor
    segments_BT: Tensor | None
    positions_BT: Tensor | None


def _micro_batches(batch: Batch, size: int, device: torch.device) -> Iterator[tuple[_MicroBatch, bool]]:
    num_rows = batch.inputs_BT.shape[0]
    for start in range(0, num_rows, size):

        def part(whole: Tensor, start: int = start) -> Tensor:
            return whole[start : start + size].to(device, non_blocking=True)

        micro = _MicroBatch(
            part(batch.inputs_BT),
            part(batch.targets_BT),
            None if batch.segments_BT is None else part(batch.segments_BT),
            None if batch.positions_BT is None else part(batch.positions_BT),
        )
        yield micro, start + size >= num_rows
