"""The precision of every contender's matrix products."""

import contextlib
from typing import Any

import torch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(shape: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Autocast on the shape's device in its precision; nothing in fp32."""
    dtype = _DTYPES.get(shape["precision"])
    device_type = torch.device(shape["device"]).type
    return torch.autocast(device_type, dtype=dtype) if dtype is not None else contextlib.nullcontext()
