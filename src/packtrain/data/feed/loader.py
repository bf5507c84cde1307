"""Decides which rows a step trains on, and reads them ahead of time on one thread.

A batch is a function of (manifest, plan, seed, samples consumed) alone: resuming computes where to go on, and never
reads through what was seen. B rows of a batch, T tokens of a row.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from packtrain.data.rows.plan import Layout
from packtrain.errors import ConfigError, DatasetError, DeviceError

# Steps that are small are read several at a time, as arrays of a few thousand tokens cost more to set up than to fill.
READ_TOKENS = 65_536

# Reads made before they are asked for: enough to ride out a slow one, little enough to forget about.
PREFETCHED_READS = 3


@dataclass(frozen=True)
class LoaderState:
    """Where a run is in its data, whatever its world size, accumulation and machine."""

    manifest_hash: str
    plan_hash: str
    seed: int
    epoch: int
    """Times that every row has been seen; of a mixture, that as many rows have been as its datasets have together."""
    samples_consumed: int
    """Rows seen of this epoch, over all ranks."""

    def to_dict(self) -> dict[str, str | int]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The state that `to_dict` wrote. Raises DatasetError for anything else."""
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        if values.keys() != types.keys() or any(type(values[name]) is not kind for name, kind in types.items()):
            raise DatasetError(
                f"the saved position in the data is damaged: it needs {', '.join(types)} and has {values}; "
                "resume from an earlier checkpoint"
            )
        return cls(**values)


class Rows(NamedTuple):
    """Rows as tensors of newly allocated memory, which nothing writes to again."""

    inputs_BT: torch.Tensor
    """int64."""
    targets_BT: torch.Tensor
    """int64; IGNORE_INDEX where there is none."""
    segments_BT: torch.Tensor | None
    """int32; numbers the documents of a row, with a document mask only."""
    positions_BT: torch.Tensor | None
    """int64; counts from 0 in each segment, with a document mask only."""

    def part(self, first: int, stop: int) -> "Rows":
        """A view of the rows first..stop - 1."""
        segments, positions = self.segments_BT, self.positions_BT
        return Rows(
            self.inputs_BT[first:stop],
            self.targets_BT[first:stop],
            None if segments is None else segments[first:stop],
            None if positions is None else positions[first:stop],
        )


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step. The tensors are as in `Rows`, pinned if the loader was asked to."""

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor
    segments_BT: torch.Tensor | None
    positions_BT: torch.Tensor | None
    state: LoaderState
    """Where the run is after this batch."""
    num_targets: int
    """Positions with a target in the whole step, over all ranks."""


def step_rows(layout: Layout, seed: int, position: int, count: int) -> np.ndarray:
    """Rows number position..position + count - 1 that a run sees, int64[count], counted from its beginning over epochs."""
    return layout.rows_at(np.arange(position, position + count), seed)


def read_rows(layout: Layout, rows: np.ndarray, *, document_mask: bool = False, pin_memory: bool = False) -> Rows:
    """The given rows (int64[B]) as tensors, with segments and positions if documents are to be kept apart."""
    shape = (len(rows), layout.seq_len)

    def new(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=pin_memory)

    inputs, targets = new(torch.int64), new(torch.int64)
    segments, positions = (new(torch.int32), new(torch.int64)) if document_mask else (None, None)
    layout.fill(rows, *(array.numpy() for array in (inputs, targets, segments, positions) if array is not None))
    return Rows(inputs, targets, segments, positions)


class Loader:
    """This rank's batches of a run from `state` on, or from the beginning; also a context manager.

    The step that begins at row `position` of the run has the rows position..position + rows_per_step - 1, and rank r
    the r-th of world_size equal parts of them. Calling `iter` goes on where the loader stands.

    Raises DatasetError for a state of another dataset, plan or seed, and from `next` where the data has no whole step left,
    which only a limit of epochs brings about; ConfigError where the rows do not divide over the
    ranks, DeviceError for pinned memory without CUDA. What goes wrong on the reading thread is raised by `next`.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        rows_per_step: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int,
        document_mask: bool = False,
        pin_memory: bool = False,
        state: LoaderState | None = None,
    ) -> None:
        assert 0 <= rank < world_size and rows_per_step > 0
        if rows_per_step % world_size:
            raise ConfigError(
                f"a step of {rows_per_step} rows does not divide over {world_size} processes; "
                f"write train.global_batch_tokens={-(-rows_per_step // world_size) * world_size * layout.seq_len}"
            )
        if pin_memory and not torch.cuda.is_available():
            raise DeviceError("pinned memory needs a CUDA device and this machine has none; leave pin_memory off")
        if state is not None:
            _check(state, layout, seed)
        self.layout = layout
        self.rows_per_step = rows_per_step
        self.seed = seed
        self._share = slice(rank * rows_per_step // world_size, (rank + 1) * rows_per_step // world_size)
        self._document_mask = document_mask
        self._pin_memory = pin_memory
        self._state = state or self._state_at(0)
        self._next_position = self._state.epoch * layout.num_rows + self._state.samples_consumed
        tokens_per_step = rows_per_step // world_size * layout.seq_len
        # Not over several epochs at a time: each needs an order of its own.
        self._steps_per_read = max(1, min(READ_TOKENS // tokens_per_step, layout.num_rows // rows_per_step))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="packtrain-loader")
        self._coming: deque[Future[list[Batch]]] = deque()
        self._ready: deque[Batch] = deque()
        self._is_closed = False

    def state(self) -> LoaderState:
        """Where the run is after the batch that was handed out last."""
        return self._state

    def batch_at(self, position: int) -> Batch:
        """The batch of the step that begins at row `position` of the run: the same whenever and wherever it is made."""
        return self._read(position, 1)[0]

    def close(self) -> None:
        """Stop the thread; waits for the read that it is at. The loader gives no more batches."""
        self._is_closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._is_closed:
            raise RuntimeError("the loader is closed")
        if not self._ready:
            self._ready.extend(self._next_read())
        batch = self._ready.popleft()
        self._state = batch.state
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _state_at(self, position: int) -> LoaderState:
        epoch, samples = divmod(position, self.layout.num_rows)
        return LoaderState(self.layout.manifest_hash, self.layout.hash, self.seed, epoch, samples)

    def _next_read(self) -> list[Batch]:
        while len(self._coming) <= PREFETCHED_READS and (num_steps := self._steps_left(self._steps_per_read)):
            self._coming.append(self._thread.submit(self._read, self._next_position, num_steps))
            self._next_position += num_steps * self.rows_per_step
        if not self._coming:
            raise DatasetError(
                f"the data ends before row {self._next_position + self.rows_per_step:,} of the run, as every source has a "
                "limit of epochs; raise max_epochs in data.dataset, or lower train.steps"
            )
        try:
            return self._coming.popleft().result()
        except BaseException:
            # The batches behind a lost one must not pass for its successors.
            self.close()
            raise

    def _steps_left(self, wanted: int) -> int:
        if self.layout.num_places is None:
            return wanted
        return min(wanted, (self.layout.num_places - self._next_position) // self.rows_per_step)

    def _read(self, position: int, num_steps: int) -> list[Batch]:
        count = num_steps * self.rows_per_step
        rows = step_rows(self.layout, self.seed, position, count).reshape(num_steps, self.rows_per_step)
        num_targets = self.layout.row_targets(rows.reshape(-1)).reshape(rows.shape).sum(axis=1).tolist()
        share = rows[:, self._share]
        read = read_rows(self.layout, share.reshape(-1), document_mask=self._document_mask, pin_memory=self._pin_memory)
        size = share.shape[1]
        return [
            Batch(
                *read.part(step * size, (step + 1) * size),
                state=self._state_at(position + (step + 1) * self.rows_per_step),
                num_targets=num_targets[step],
            )
            for step in range(num_steps)
        ]


def _check(state: LoaderState, layout: Layout, seed: int) -> None:
    if state.manifest_hash != layout.manifest_hash:
        raise DatasetError(
            f"this run was trained on dataset {state.manifest_hash[:12]} and the one given is "
            f"{layout.manifest_hash[:12]}; set data.dataset to the folder it was trained on, or, of a mixture, to the same "
            "folders, weights and max_epochs, or start a new run"
        )
    if state.plan_hash != layout.hash:
        raise DatasetError(
            f"this run's rows were laid out by plan {state.plan_hash[:12]} and are now by {layout.hash[:12]}; "
            "set data.seq_len and data.packing back to what they were, or start a new run"
        )
    if state.seed != seed:
        raise DatasetError(
            f"this run's rows were ordered by seed {state.seed} and are now by {seed}; write train.seed={state.seed}, "
            "or start a new run"
        )
    if state.epoch < 0 or not 0 <= state.samples_consumed < layout.num_rows:
        raise DatasetError(
            f"the saved position, row {state.samples_consumed} of epoch {state.epoch}, does not exist in a plan of "
            f"{layout.num_rows} rows; resume from an earlier checkpoint"
        )
