"""Decides what cpu.*=auto means: what the run had before, else whichever library is measured to be faster, on all ranks alike."""

import logging
import time

import torch

from packtrain.config.cpu import ALL_TORCH, AUTO, ONEDNN, TORCH, CpuConfig, describe_layers
from packtrain.config.model import ModelConfig
from packtrain.config.run import RunConfig
from packtrain.model.cpu.measured import find_rates
from packtrain.model.cpu.products import can_use_onednn, maker_rule
from packtrain.model.cpu.timing import Product, Rates, choose, list_products, list_shapes
from packtrain.train.step import Placement

_log = logging.getLogger("packtrain")


def resolve_cpu_libraries(
    config: RunConfig, before: CpuConfig | None, placement: Placement, *, num_lanes: int
) -> RunConfig:
    """`config` with everything that cpu.* leaves open decided, the same on all ranks. Waits for all of them.

    `before`: the run's settings when it was last started; they are kept, so that a resumed run has the same bits.
    """
    if config.cpu.is_open:
        found = before or placement.ranks.gather(_measure(config, placement, num_lanes))[0]
        if found.is_open:
            found = _as_it_was(config, placement)
        decided = {name: getattr(found, name) for name, value in config.cpu if value == AUTO}
        config = config.model_copy(update={"cpu": config.cpu.model_copy(update=decided)})
    missing = [name for name, value in config.cpu if value != TORCH]
    if missing and not _has_onednn(placement) and placement.ranks.is_main:
        _log.warning(
            "cpu.%s=%s, and torch has no oneDNN for %s on this CPU: torch's own products are used, so numbers differ from those "
            "of a machine that has it in their last digits",
            missing[0],
            getattr(config.cpu, missing[0]),
            placement.precision.name,
        )
    return config


def measure_products(
    model: ModelConfig, rows: int, dtype: torch.dtype, num_threads: int, *, again: bool = False
) -> list[tuple[Product, Rates]]:
    """Both libraries' rates at each product of a step of `rows` tokens: those that are kept, the others measured in about a second.

    `again`: measures all of them, and keeps whichever rate is higher: other work on a machine only lowers it. Empty for a model
    whose products are all small. Needs `can_use_onednn`.
    """
    start = time.perf_counter()
    found, num_measured = find_rates(list_products(model, rows), dtype, num_threads, again=again)
    if num_measured:
        _log.info(
            "cpu.*=auto: oneDNN is the faster library at %d of %d matrix products, and takes them (measured in %.1f s)",
            sum(rates.prefer_onednn for _, rates in found),
            len(found),
            time.perf_counter() - start,
        )
    return found


def _measure(config: RunConfig, placement: Placement, num_lanes: int) -> CpuConfig | None:
    """None on other ranks than the main one, whose measurement holds for all."""
    if not placement.ranks.is_main:
        return None
    if not _has_onednn(placement):
        return ALL_TORCH
    rows = placement.micro_batch_size // num_lanes * config.data.seq_len
    threads = max(1, torch.get_num_threads() // num_lanes)
    return choose(measure_products(config.model, rows, placement.precision.dtype or torch.float32, threads))


def _as_it_was(config: RunConfig, placement: Placement) -> CpuConfig:
    """What a run did that was started by an older version, which noted nothing: the CPU's maker decided, and only in float32."""
    libraries = maker_rule() if placement.precision.dtype is None else ALL_TORCH
    *in_blocks, logits = list_shapes(config.model)
    # torch took the product that gives the gradient of what the logits are computed from.
    blocks = describe_layers({*in_blocks}, {*in_blocks, logits}) if libraries.input_gradients == ONEDNN else TORCH
    return libraries.model_copy(update={"input_gradients": blocks})


def _has_onednn(placement: Placement) -> bool:
    return can_use_onednn(torch.empty(0, dtype=placement.precision.dtype))
