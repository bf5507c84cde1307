"""Decides which of CUDA's kernels computes causal attention: what is set, what the run had before, or whichever is measured faster."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from packtrain.config.run import RunConfig
from packtrain.train.step import Placement

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Measure = Callable[[RunConfig, Placement, str], float | None]
"""Seconds that a kernel of BACKENDS takes forward and backward at the shape of a run; None if it cannot compute that."""
_REPEATS, _WARM = 10, 3
# Rows that are measured: enough to fill a card at any length, and a small part of its memory.
_MOST_TOKENS = 16_384
_log = logging.getLogger("packtrain")


def measure_kernel(config: RunConfig, placement: Placement, name: str) -> float | None:
    """As `Measure`, on the placement's device, in about a tenth of a second."""
    model, T = config.model, config.data.seq_len
    rows = max(1, min(placement.micro_batch_size, _MOST_TOKENS // T))
    q, k, v = (
        torch.randn(rows, T, heads, model.head_size, dtype=placement.precision.dtype, device=placement.device)
        .transpose(1, 2)
        .requires_grad_()
        for heads in (model.num_attention_heads, model.kv_heads, model.kv_heads)
    )
    is_grouped = model.num_attention_heads != model.kv_heads
    gradient = torch.randn_like(q)

    def pass_both_ways() -> None:
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)
        torch.autograd.grad(out, (q, k, v), gradient)

    try:
        with sdpa_kernel([BACKENDS[name]]):
            for _ in range(_WARM):
                pass_both_ways()
            _wait_for(placement.device)
            start = time.perf_counter()
            for _ in range(_REPEATS):
                pass_both_ways()
            _wait_for(placement.device)
    except RuntimeError as error:
        # torch says "No available kernel" of a shape, type or device that a kernel does not take, and cuDNN has its own words.
        _log.debug("attention by %s: %s", name, error)
        return None
    return (time.perf_counter() - start) / _REPEATS


def resolve_attention(
    config: RunConfig, before: RunConfig | None, placement: Placement, measure: Measure = measure_kernel
) -> RunConfig:
    """`config` with a kernel in place of train.attention=auto, the same on all ranks. Waits for all of them.

    Left as it is where nothing is chosen: on other devices than CUDA, in float32, and with document masks, for which
    FlexAttention skips what is between documents. `before`: the run's settings when it was last started; they are kept.
    """
    given, ranks = config.train.attention, placement.ranks
    is_open = placement.device.type == "cuda" and placement.precision.dtype is not None
    if given != "auto" or not is_open or config.data.document_mask:
        return config
    chosen = "auto" if before is None else before.train.attention
    if config.train.deterministic:
        chosen = "flash"
    elif chosen == "auto":
        chosen = ranks.gather(_choose(config, placement, measure) if ranks.is_main else "")[0]
    return config.model_copy(update={"train": config.train.model_copy(update={"attention": chosen})})


def _choose(config: RunConfig, placement: Placement, measure: Measure) -> str:
    seconds = {name: measure(config, placement, name) for name in BACKENDS}
    found = {name: value for name, value in seconds.items() if value is not None}
    if not found:
        _log.warning("train.attention=auto: none of flash, cudnn and efficient computes this shape; torch chooses")
        return "torch"
    best = min(found, key=lambda name: found[name])
    times = ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in found.items())
    _log.info("train.attention=auto: %s (measured forward and backward: %s)", best, times)
    return best


@contextlib.contextmanager
def use_attention(config: RunConfig) -> Iterator[None]:
    """Lets torch prefer the kernel of train.attention for the length of the block, and others where it cannot compute."""
    name = config.train.attention
    if name not in BACKENDS:
        yield
        return
    rest = [backend for backend in (*BACKENDS.values(), SDPBackend.MATH) if backend != BACKENDS[name]]
    with sdpa_kernel([BACKENDS[name], *rest], set_priority=True):
        yield


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
