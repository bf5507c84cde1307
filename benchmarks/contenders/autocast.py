"""Decides the precision of every contender's matrix products."""

import contextlib
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(shape: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Autocast on the shape's device in its precision; nothing in fp32."""
    dtype = DTYPES.get(shape["precision"], torch.float32)
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(shape["device"]).type, dtype=dtype)
