"""Decides how the model is spread over the ranks."""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from packtrain.parallel.ranks import Ranks


def wrap(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The model with its gradients averaged over the ranks; the model itself where there is one process."""
    if ranks.world_size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


def without_sync(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Leaves gradients of all but the last micro-batch of a step local: they are summed once."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return contextlib.nullcontext()
