"""Decides how configuration becomes parts: the only place where dataset, model, optimizer, loader and validation meet."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import Outlook, RunDatasets
from packtrain.data.feed.loader import Loader
from packtrain.data.feed.position import LoaderState
from packtrain.data.format.manifest import TokenizerInfo
from packtrain.errors import ConfigError
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.cpu.products import Products
from packtrain.model.fp8 import use_fp8
from packtrain.model.init import ReadWeight, build
from packtrain.model.llama import Llama
from packtrain.model.roles import roles
from packtrain.optim.base import ShardedOptimizer, Sharding
from packtrain.optim.build import build_optimizer
from packtrain.parallel.lanes import split_into_lanes
from packtrain.parallel.ranks import Ranks
from packtrain.parallel.shards import (
    apply_whole,
    gather_rows,
    is_sharded,
    num_ranks,
    num_shards,
    num_sharers,
    take_local,
)
from packtrain.parallel.wrap import must_shard, replicate
from packtrain.runs.checkpoint import Checkpoint
from packtrain.train.attention_kernel import resolve_attention
from packtrain.train.auto_rows import resolve_rows
from packtrain.train.average import Average
from packtrain.train.compilation import compile_model
from packtrain.train.cpu_libraries import resolve_cpu_libraries
from packtrain.train.device import check_optimizer, resolve_compile, resolve_lanes, resolve_precision
from packtrain.train.guards import Guard
from packtrain.train.memory import count_recomputed, explain_out_of_memory, share_to_compile, warn_about_others
from packtrain.train.parallel_mode import resolve_parallel_mode
from packtrain.train.preflight import check_checkpoint, report_data, resolve_micro_batch_size, warn_about_schedule
from packtrain.train.sharding import shard_model
from packtrain.train.state import restore
from packtrain.train.step import Placement
from packtrain.train.validate import Validator, build_validator

SHARDING = Sharding(is_sharded, take_local, num_shards, num_ranks, num_sharers, apply_whole, gather_rows)
"""What optimizers need to step sharded parameters."""
_log = logging.getLogger("packtrain")


@dataclass
class Progress:
    """How far a run is: optimizer updates, targets trained on, and the validation loss of this very step, if there is one."""

    step: int = 0
    tokens: int = 0
    val_loss: float | None = None


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    config: RunConfig
    placement: Placement
    model: Llama
    """Holds the weights, and is compiled if the run compiles: for evaluation."""
    trained: nn.Module
    """The same, with its gradients averaged over ranks or summed over lanes: for steps."""
    optimizer: ShardedOptimizer
    average: Average
    """Of the weights; empty if the run has none."""
    loader: Loader
    guard: Guard
    validator: Validator | None
    tokenizer: TokenizerInfo
    """Of the dataset."""
    outlooks: list[Outlook]
    """What the run sees of each dataset."""
    num_steps: int
    progress: Progress


def build_parts(
    config: RunConfig,
    datasets: RunDatasets,
    *,
    ranks: Ranks,
    device: torch.device,
    checkpoint: Checkpoint | None,
    read: ReadWeight | None = None,
    place: dict[str, Any] | None = None,
    before: RunConfig | None = None,
    emulate_fp8: bool = False,
) -> Parts:
    """Every part of a run, as of `checkpoint` or at the beginning. Without one, `read` gives the weights if they are not new,
    and `place` the loader's state if it does not begin with the first row.

    `before`: the run's settings when it was last started; what `auto` meant there is kept. `emulate_fp8`
    as in `use_fp8`.
    """
    check_optimizer(config.optim, device)
    state: dict[str, Any] = {} if checkpoint is None else checkpoint.state
    loader, num_steps, outlooks = _open_loader(config, datasets, ranks, device, state.get("loader", place))
    if checkpoint is not None:
        check_checkpoint(config, checkpoint, num_steps)
    config, placement = _place(config, ranks, device, before)
    warn_about_others(config, placement)
    precision = placement.precision
    validator = build_validator(config, datasets, placement)
    if validator is None and config.train.stop_after is not None:
        raise ConfigError(
            f"train.stop_after={config.train.stop_after} needs held-out text, and {datasets.name} has none; leave it out, or "
            "prepare the data with split.validation_fraction above 0"
        )
    with explain_out_of_memory(config, placement):
        model, trained = _build_model(config, placement, checkpoint is None, read, emulate_fp8)
        optimizer = build_optimizer(
            config.optim, dict(model.named_parameters()), roles(model), precision.dtype, SHARDING
        )
        if device.type == "cuda" and resolve_compile(config.train, device):
            optimizer.compile_update()
        average = Average(config, model)
        if checkpoint is None:
            optimizer.make_states()
        else:
            restore(checkpoint, model, optimizer, precision.scaler, average)
    return Parts(
        config=config,
        placement=placement,
        model=model,
        trained=trained,
        optimizer=optimizer,
        average=average,
        loader=loader,
        guard=Guard(config.guard, precision.name, state.get("guard")),
        validator=validator,
        tokenizer=datasets.tokenizer,
        outlooks=outlooks,
        num_steps=num_steps,
        progress=Progress(state.get("step", 0), state.get("tokens", 0), state.get("val_loss")),
    )


def _open_loader(
    config: RunConfig, datasets: RunDatasets, ranks: Ranks, device: torch.device, position: dict[str, Any] | None
) -> tuple[Loader, int, list[Outlook]]:
    """Lays out the data as rows, and opens this rank's loader at `position`; also the number of steps, and what they see."""
    layout = datasets.layout(config.data.seq_len, config.data.packing, config.repack_seed)
    num_steps = config.num_steps(layout.num_rows, layout.num_places)
    outlooks = datasets.outlook(layout, config.rows_per_step, num_steps)
    report_data(config, datasets, layout, num_steps, outlooks)
    warn_about_schedule(config, num_steps)
    loader = Loader(
        layout,
        rows_per_step=config.rows_per_step,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.train.seed,
        document_mask=config.data.document_mask,
        pin_memory=device.type == "cuda",
        state=None if position is None else LoaderState.from_dict(position),
    )
    return loader, num_steps, outlooks


def _place(
    config: RunConfig, ranks: Ranks, device: torch.device, before: RunConfig | None
) -> tuple[RunConfig, Placement]:
    """Where and how this process computes, and the configuration with what was `auto` in it resolved."""
    precision, is_compiled = resolve_precision(config.train, device), resolve_compile(config.train, device)
    placement = Placement(device, precision, 1, ranks, is_compiled=is_compiled)
    config = resolve_rows(config, before, placement)
    placement = dataclasses.replace(placement, micro_batch_size=resolve_micro_batch_size(config, ranks.world_size))
    config = resolve_parallel_mode(config, before.parallel if before else None, placement)
    config = resolve_attention(config, before, placement)
    if device.type == "cpu" and precision.name != "fp8" and not is_compiled:
        num_lanes = _resolve_lanes(config, placement)
        config = resolve_cpu_libraries(config, before.cpu if before else None, placement, num_lanes=num_lanes)
    return config, dataclasses.replace(placement, is_sharded=must_shard(config.parallel, ranks))


def _build_model(
    config: RunConfig, placement: Placement, is_new: bool, read: ReadWeight | None, emulate_fp8: bool
) -> tuple[Llama, nn.Module]:
    """The model as `Parts` holds it: `model` and `trained`. Each line below changes what the lines above made."""
    ranks, device, is_compiled = placement.ranks, placement.device, placement.is_compiled
    num_lanes = _resolve_lanes(config, placement)
    model = build(config.model, seed=config.train.seed, device="meta" if placement.is_sharded else device, read=read)
    if placement.precision.name == "fp8":
        _use_fp8(model, device, emulate=emulate_fp8, is_compiled=is_compiled)
    elif device.type == "cpu":
        use_cpu_kernels(model, None if config.cpu.is_open else Products.of(config.cpu))
    if is_compiled:
        compile_model(model, share_to_compile(config, placement))
    if placement.is_sharded:
        # Its blocks exchange weights and gradients.
        shard_model(model, config, placement, is_new=is_new, read=read)
    model.recompute(count_recomputed(config, placement))
    return model, model if placement.is_sharded else split_into_lanes(replicate(model, ranks, device), num_lanes)


def _resolve_lanes(config: RunConfig, placement: Placement) -> int:
    is_alone, is_compiled = placement.ranks.world_size == 1, placement.is_compiled
    return resolve_lanes(
        config, placement.micro_batch_size, placement.device, is_alone=is_alone, is_compiled=is_compiled
    )


def _use_fp8(model: Llama, device: torch.device, *, emulate: bool, is_compiled: bool) -> None:
    num_left = use_fp8(model, emulate=emulate)
    if num_left:
        _log.warning(
            "train.precision=fp8: %d matrices stay in bf16 because one of their sides is not a multiple of 16", num_left
        )
    if device.type == "cuda" and not is_compiled:
        _log.warning("train.precision=fp8 is slower than bf16 without compilation; write train.compile=true")
