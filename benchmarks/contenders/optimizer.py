"""The optimizer that every contender but ours uses."""

from collections.abc import Iterable
from typing import Any

import torch


def fused_adamw(parameters: Iterable[torch.nn.Parameter], shape: dict[str, Any]) -> torch.optim.AdamW:
    """torch's fastest AdamW, with the shape's settings."""
    settings = {key: shape[key] for key in ("lr", "weight_decay", "betas")}
    return torch.optim.AdamW(parameters, fused=True, **settings)
