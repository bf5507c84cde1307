"""Decides what a run says of itself before its first step."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from packtrain.data.feed.datasets import RunDatasets
from packtrain.optim.schedule import warmup
from packtrain.plan.parameters import num_parameters
from packtrain.runs.layout import RunLayout
from packtrain.runs.manifest import hardware
from packtrain.train.setup import Parts


class Reading(NamedTuple):
    """What a run reads of a dataset."""

    folder: str
    num_tokens: int
    """For training, in one epoch."""
    epochs: float
    """Over the whole run."""


@dataclass(frozen=True)
class Header:
    """What a run is, as its first lines tell it."""

    folder: Path
    step: int
    """Steps that are done already; more than 0 for a resumed run."""
    num_steps: int
    num_parameters: int
    num_layers: int
    hidden_size: int
    datasets: tuple[Reading, ...]
    seq_len: int
    global_batch_tokens: int
    micro_batch_size: int
    """In rows, on one rank."""
    grad_accum_steps: int
    """Micro-batches of one rank in a step."""
    precision: str
    device: str
    """The device's name."""
    device_type: str
    world_size: int
    parallel_mode: str
    """`ddp` or `fsdp`; of a single process it says nothing."""
    source: str | None = None
    """What the first weights are from, if they are not new."""
    warmup_steps: int = 0


def describe_header(parts: Parts, datasets: RunDatasets, layout: RunLayout, source: str | None = None) -> Header:
    """The header of a run that is about to train `parts`, with weights from `source` if they are not new."""
    config, placement = parts.config, parts.placement
    world_size = placement.ranks.world_size
    readings = [
        Reading(str(source.dataset.folder), source.dataset.split("train").num_tokens, outlook.epochs)
        for source, outlook in zip(datasets.parts, parts.outlooks, strict=True)
    ]
    return Header(
        folder=layout.folder,
        step=parts.progress.step,
        num_steps=parts.num_steps,
        num_parameters=num_parameters(config.model),
        num_layers=config.model.num_hidden_layers,
        hidden_size=config.model.hidden_size,
        datasets=tuple(readings),
        seq_len=config.data.seq_len,
        global_batch_tokens=config.train.global_batch_tokens,
        micro_batch_size=placement.micro_batch_size,
        grad_accum_steps=config.rows_per_step // (world_size * placement.micro_batch_size),
        precision=placement.precision.name,
        device=hardware(placement.device)["device"],
        device_type=placement.device.type,
        world_size=world_size,
        parallel_mode="fsdp" if placement.is_sharded else "ddp",
        source=source,
        warmup_steps=warmup(config.effective_schedule, parts.num_steps),
    )
