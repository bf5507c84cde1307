"""Decides how configuration becomes parts: the only place where dataset, model, optimizer, loader and validation meet."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from packtrain.config.optim import ScheduleConfig
from packtrain.config.parallel import ParallelConfig
from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets, open_run_datasets
from packtrain.data.feed.loader import Loader, LoaderState
from packtrain.data.feed.mixture import Mixture
from packtrain.errors import ConfigError, RunError, TokenizerError
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.fp8 import use_fp8
from packtrain.model.init import build, initial_values
from packtrain.model.llama import Llama
from packtrain.model.roles import roles
from packtrain.optim.base import ShardedOptimizer, Sharding
from packtrain.optim.build import build_optimizer
from packtrain.optim.schedule import warmup
from packtrain.parallel.lanes import split_into_lanes
from packtrain.parallel.ranks import Ranks
from packtrain.parallel.shards import apply_whole, fill, is_sharded, num_ranks, num_shards, take_local
from packtrain.parallel.wrap import replicate, resolve_mode, shard
from packtrain.plan.memory import PrecisionName
from packtrain.runs.checkpoint import Checkpoint
from packtrain.train.device import resolve_compile, resolve_lanes, resolve_precision
from packtrain.train.guards import Guard
from packtrain.train.memory import num_recomputed
from packtrain.train.parallel_mode import resolve_parallel_mode
from packtrain.train.state import restore
from packtrain.train.step import Precision
from packtrain.train.validate import Validator, build_validator

SHARDING = Sharding(is_sharded, take_local, num_shards, num_ranks, apply_whole)
"""What optimizers need to step sharded parameters."""
_log = logging.getLogger("packtrain")


@dataclass
class Progress:
    """How far a run is: optimizer updates done, targets trained on, and the validation loss at this very step, if any."""

    step: int = 0
    tokens: int = 0
    val_loss: float | None = None


@dataclass(frozen=True)
class Parts:
    """What a run is made of. `model` holds the weights; `forward` is it, compiled; `trained` is that, spread over ranks.

    With `is_sharded` each rank holds a part of the weights only, and all must call `forward` together.
    """

    config: RunConfig
    ranks: Ranks
    device: torch.device
    precision: Precision
    precision_name: PrecisionName
    is_sharded: bool
    model: Llama
    forward: nn.Module
    trained: nn.Module
    optimizer: ShardedOptimizer
    loader: Loader
    guard: Guard
    validator: Validator | None
    num_steps: int
    micro_batch_size: int
    progress: Progress


def open_training_data(config: RunConfig) -> RunDatasets:
    """The datasets of a run, after they were held against the model.

    Raises ConfigError where none is named, DatasetError where one is not whole, TokenizerError where they do not have the
    same tokenizer or its vocabulary is not the model's.
    """
    sources = open_run_datasets(config.data)
    own, wanted = sources.tokenizer.vocab_size, config.model.vocab_size
    # Rounding a vocabulary up makes matrix products faster, so a model may have some rows that no token uses.
    if not own <= wanted <= math.ceil(own / 128) * 128:
        raise TokenizerError(
            f"the tokenizer of {sources.name} has {own} tokens and the model has model.vocab_size={wanted}; "
            f"write model.vocab_size={own}, or train on a dataset prepared with the tokenizer that the model is for"
        )
    return sources


def build_parts(
    config: RunConfig,
    sources: RunDatasets,
    *,
    ranks: Ranks,
    device: torch.device,
    checkpoint: Checkpoint | None,
    spread_before: ParallelConfig | None = None,
    emulate_fp8: bool = False,
) -> Parts:
    """Every part of a run, standing where `checkpoint` left off, or at the beginning.

    `spread_before`: what `parallel.mode=auto` goes on with. `emulate_fp8` as in `use_fp8`.
    """
    state: dict[str, Any] = {} if checkpoint is None else checkpoint.state
    # The configuration in a run's folder may have been edited.
    if checkpoint is not None and state.get("optimizer", config.optim.name) != config.optim.name:
        raise RunError(
            f"{checkpoint.folder} holds the state of optim.name={state['optimizer']} and cannot go on with {config.optim.name}; "
            f"write optim.name={state['optimizer']}, or start a new --run"
        )
    rows = sources.layout(config.data.seq_len, config.data.packing)
    num_steps = config.num_steps(rows.num_rows, rows.num_places)
    _tell_shares(config, sources, rows, num_steps)
    loader = Loader(
        rows,
        rows_per_step=config.rows_per_step,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.train.seed,
        document_mask=config.data.document_mask,
        pin_memory=device.type == "cuda",
        state=LoaderState.from_dict(state["loader"]) if state else None,
    )
    # The loader has made sure that the rows divide.
    micro_batch_size = _micro_batch_size(config, config.rows_per_step // ranks.world_size)
    _tell_schedule(config, num_steps)
    name, precision = resolve_precision(config.train, device)
    config = resolve_parallel_mode(
        config, spread_before, micro_batch_size=micro_batch_size, precision=name, ranks=ranks, device=device
    )
    mode = resolve_mode(config.parallel, ranks)
    is_compiled = resolve_compile(config.train, device)
    num_lanes = resolve_lanes(config, micro_batch_size, device, is_alone=mode == "alone", is_compiled=is_compiled)
    # Made of other layers before it is cut or compiled, and with weights after.
    model = build(config.model, seed=config.train.seed, device="meta" if mode == "fsdp" else device)
    if name == "fp8":
        _take_fp8(model, device, emulate=emulate_fp8, is_compiled=is_compiled)
    elif device.type == "cpu":
        use_cpu_kernels(model)
    if mode == "fsdp":
        cut(model, config, ranks, device, precision, is_compiled, is_new=checkpoint is None)
    model.recompute(num_recomputed(config, micro_batch_size, name))
    optimizer = build_optimizer(config.optim, dict(model.named_parameters()), roles(model), precision.dtype, SHARDING)
    if checkpoint is not None:
        restore(checkpoint, model, optimizer, precision.scaler)
    else:
        optimizer.make_states()
    progress = Progress(state.get("step", 0), state.get("tokens", 0), state.get("val_loss"))
    if progress.step > num_steps:
        raise RunError(
            f"the run is at step {progress.step}, beyond the {num_steps} asked for; write train.steps={progress.step}"
        )
    forward: nn.Module = torch.compile(model) if is_compiled and mode != "fsdp" else model  # type: ignore[assignment]
    return Parts(
        config=config,
        ranks=ranks,
        device=device,
        precision=precision,
        precision_name=name,
        is_sharded=mode == "fsdp",
        model=model,
        forward=forward,
        trained=forward if mode == "fsdp" else split_into_lanes(replicate(forward, ranks, device), num_lanes),
        optimizer=optimizer,
        loader=loader,
        guard=Guard(config.guard, name, state.get("guard")),
        validator=build_validator(
            config,
            sources,
            micro_batch_size=micro_batch_size,
            ranks=ranks,
            device=device,
            precision=precision,
            is_sharded=mode == "fsdp",
        ),
        num_steps=num_steps,
        micro_batch_size=micro_batch_size,
        progress=progress,
    )


def _tell_schedule(config: RunConfig, num_steps: int) -> None:
    """Which settings of the schedule do nothing, or not what they say."""
    given, effective = config.schedule, config.effective_schedule
    warm = warmup(effective, num_steps)
    if warm < effective.warmup_steps:
        _log.warning(
            "schedule.warmup_steps=%d is not shorter than the run of %d steps; warming up for %d",
            given.warmup_steps,
            num_steps,
            warm,
        )
    for key, names in (("decay_fraction", ("wsd",)), ("min_lr_ratio", ("cosine", "wsd", "linear"))):
        if given.name not in names and getattr(given, key) != ScheduleConfig.model_fields[key].default:
            _log.warning("schedule.%s does nothing with schedule.name=%s; leave it out", key, given.name)


def _tell_shares(config: RunConfig, sources: RunDatasets, rows: Mixture, num_steps: int) -> None:
    """What a mixture comes to, what is left over where the data ends, and whether there is too little for a step."""
    if len(sources.parts) > 1:
        for outlook in sources.outlook(rows, config.rows_per_step, num_steps):
            _log.info("%s", outlook)
    if rows.num_rows < config.rows_per_step or rows.num_targets < config.data.seq_len:
        _log.warning(
            "%s has %s tokens to train on, in %s rows of data.seq_len=%s, and a step takes %s rows: each step sees the same "
            "text again, or padding; lower train.global_batch_tokens and data.seq_len, or prepare more text",
            sources.name,
            f"{rows.num_targets:,}",
            f"{rows.num_rows:,}",
            f"{config.data.seq_len:,}",
            f"{config.rows_per_step:,}",
        )
    if rows.num_places is not None and config.given_steps is None:
        left = rows.num_places - num_steps * config.rows_per_step
        if 0 < left < config.rows_per_step:
            _log.warning("the last %d rows of the data do not fill a step and are not trained on", left)


def _take_fp8(model: Llama, device: torch.device, *, emulate: bool, is_compiled: bool) -> None:
    num_left = use_fp8(model, emulate=emulate)
    if num_left:
        _log.warning(
            "train.precision=fp8: %d matrices have a side that does not divide by 16 and stay in bf16", num_left
        )
    if device.type == "cuda" and not is_compiled:
        _log.warning("train.precision=fp8 is slower than bf16 where rounding is not compiled; write train.compile=true")


def cut(
    model: Llama,
    config: RunConfig,
    ranks: Ranks,
    device: torch.device,
    precision: Precision,
    is_compiled: bool,
    *,
    is_new: bool,
) -> None:
    """Cuts a model without memory over the ranks, which never hold more than one parameter whole while it is filled."""
    blocks = list(model.model.layers)
    if is_compiled:
        # Each by itself: what puts their weights together lies between them.
        for block in blocks:
            block.compile()
    shard(
        model,
        blocks,
        ranks,
        device_type=device.type,
        shard_size=config.parallel.shard_size,
        dtype=precision.dtype,
    )
    model.to_empty(device=device)
    model.tie_weights()
    if is_new:
        for name, parameter in model.named_parameters():
            fill(parameter, initial_values(name, parameter.shape, config.model, config.train.seed))


def _micro_batch_size(config: RunConfig, rows_per_rank: int) -> int:
    size = config.train.micro_batch_size
    if size > rows_per_rank:
        _log.warning(
            "train.micro_batch_size=%d is more than a step has for a process; using all %d rows", size, rows_per_rank
        )
        return rows_per_rank
    if rows_per_rank % size:
        largest = next(n for n in range(size, 0, -1) if rows_per_rank % n == 0)
        raise ConfigError(
            f"the {rows_per_rank} rows of a step on one process do not divide by train.micro_batch_size={size}; "
            f"write train.micro_batch_size={largest}"
        )
    return size
