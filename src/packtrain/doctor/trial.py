"""Decides how much of a run is built to be tried: all of it if that takes seconds, else fewer layers and shorter rows.

Letters: B batch, T tokens.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from packtrain.config.data import IGNORE_INDEX
from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets
from packtrain.data.feed.loader import Batch, Rows
from packtrain.errors import DatasetError, DeviceError
from packtrain.parallel.ranks import Ranks
from packtrain.plan.memory import needed_bytes
from packtrain.plan.parameters import flops_per_token
from packtrain.runs.checkpoint import Checkpoint
from packtrain.train.device import resolve_precision
from packtrain.train.memory import memory_bytes
from packtrain.train.setup import Parts, build_parts

MOST_STEPS = 100
"""Updates on one batch, in which it must be learned."""
_ROWS = 2
# Tokens of a row, the first that the budget allows. The last is tried with fewer and fewer layers.
_LENGTHS = (256, 128, 64)
# Floating-point operations of all steps together: some twenty seconds of two cores, seconds of a GPU.
_FLOPS = {"cpu": 3e12, "mps": 3e13, "cuda": 1e15}
# Of the memory that is free: the checks hold a second copy of the model while they compare it.
_SHARE_OF_MEMORY = 0.4


class Size(NamedTuple):
    """What is tried of a run."""

    layers: int
    tokens: int
    """Of each of its rows."""


@dataclass(frozen=True)
class Trial:
    """A run's model, optimizer and first batch, as training makes them, but for what `reduced` says."""

    parts: Parts
    batch: Batch
    reduced: str
    """How it is smaller than the run: "" or "; 2 of 32 layers"."""

    @property
    def shape(self) -> str:
        rows = self.batch.rows.inputs_BT.shape
        return f"{rows[0]} x {rows[1]} tokens{self.reduced}"


def choose_size(config: RunConfig, device: torch.device) -> Size:
    """What the budget of work and memory allows. Raises DeviceError if not even one layer fits in memory."""
    budget = _FLOPS[device.type]
    available = memory_bytes(device, Ranks()) * _SHARE_OF_MEMORY
    lengths = [n for n in _LENGTHS if n <= config.data.seq_len] or [config.data.seq_len]
    most = config.model.num_hidden_layers
    for size in (*(Size(most, n) for n in lengths), *(Size(n, lengths[-1]) for n in range(most - 1, 0, -1))):
        fits = _bytes(config, size, device) <= available
        # One layer is tried whatever it takes: most of it is the output, which cannot be made smaller.
        if fits and (size.layers == 1 or _flops(config, size) <= budget):
            return size
    tokens = lengths[-1]
    raise DeviceError(
        f"a model of one such layer needs {_bytes(config, Size(1, tokens), device) / 1e9:.1f} GB, and the checks take at most "
        f"{available / 1e9:.1f} GB here; run `packtrain doctor` on the machine that will train it"
    )


_WEIGHTS = ("init_from", "continue_from", "anneal_from")


def reduce_config(config: RunConfig, layers: int) -> RunConfig:
    """The run's configuration with fewer layers, alone, not compiled, from its initial weights, without validation."""
    changed = {
        "model": config.model.model_copy(update={"num_hidden_layers": layers}),
        "train": config.train.model_copy(update={"compile": False, **dict.fromkeys(_WEIGHTS), "extend_vocab": False}),
        "evaluate": config.evaluate.model_copy(update={"every": 0}),
        "parallel": config.parallel.model_copy(update={"mode": "auto"}),
    }
    return config.model_copy(update=changed)


def build(config: RunConfig, datasets: RunDatasets, device: torch.device, checkpoint: Checkpoint | None) -> Parts:
    """The parts of a run in this process alone. Close their loader."""
    return build_parts(config, datasets, ranks=Ranks(), device=device, checkpoint=checkpoint)


def cut_batch(batch: Batch, tokens: int) -> Batch:
    """The first rows of a batch that have something to learn, and of each its beginning. Raises DatasetError if none has."""
    rows = batch.rows
    cut = Rows(*(None if t is None else t[:, :tokens] for t in _tensors(rows)))  # type: ignore[arg-type]
    useful = (cut.targets_BT != IGNORE_INDEX).any(dim=1).nonzero().flatten()[:_ROWS]
    if not len(useful):
        raise DatasetError(
            "no row of the first step has anything to learn in its beginning: it is all padding; prepare more text"
        )
    chosen = Rows(*(None if t is None else t[useful] for t in _tensors(cut)))  # type: ignore[arg-type]
    return Batch(chosen, batch.state, int((chosen.targets_BT != IGNORE_INDEX).sum()))


def describe_reduction(config: RunConfig, size: Size) -> str:
    layers = config.model.num_hidden_layers
    return "" if size.layers == layers else f"; {size.layers} of its {layers} layers, to stay within a minute"


def _tensors(rows: Rows) -> tuple[torch.Tensor | None, ...]:
    return rows.inputs_BT, rows.targets_BT, rows.segments_BT, rows.positions_BT


def _flops(config: RunConfig, size: Size) -> float:
    model = config.model.model_copy(update={"num_hidden_layers": size.layers})
    return flops_per_token(model, size.tokens) * _ROWS * size.tokens * MOST_STEPS


def _bytes(config: RunConfig, size: Size, device: torch.device) -> float:
    tried = reduce_config(config, size.layers)
    tried = tried.model_copy(update={"data": config.data.model_copy(update={"seq_len": size.tokens})})
    precision = resolve_precision(config.train, device).name
    needed = needed_bytes(tried, _ROWS, precision, device.type, accumulates=True)
    return float("inf") if needed is None else needed
