"""Decides which rows a step trains on, and reads them ahead of time on one thread.

A batch is a function of (manifest, plan, seed, samples consumed) alone: resuming computes the place to continue from
and does not read through what was seen. B rows of a batch, T tokens of a row.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from packtrain.data.feed.position import LoaderState, check_position
from packtrain.data.rows.plan import Layout
from packtrain.errors import ConfigError, DatasetError, DeviceError

# Small steps are read several at a time: arrays of a few thousand tokens cost more to set up than to fill.
READ_TOKENS = 65_536

# Reads in flight: enough to ride out a slow one, few enough that their memory does not matter.
PREFETCHED_READS = 3


@dataclass(frozen=True)
class Rows:
    """Rows as tensors in newly allocated memory, which nothing writes to again. A slice of them is a view.

    Segments and positions are given together or not at all.
    """

    inputs_BT: Tensor
    """int64."""
    targets_BT: Tensor
    """int64; IGNORE_INDEX at positions without a target."""
    segments_BT: Tensor | None = None
    """int32; numbers the documents of a row. Only with a document mask."""
    positions_BT: Tensor | None = None
    """int64; counts from 0 in each segment. Only with a document mask."""

    def __len__(self) -> int:
        return len(self.inputs_BT)

    def __getitem__(self, rows: slice) -> "Rows":
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "Rows":
        """The rows on `device`, without waiting for the copy."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        tensors = (self.inputs_BT, self.targets_BT, self.segments_BT, self.positions_BT)
        return Rows(*(change(tensor) for tensor in tensors if tensor is not None))


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step."""

    rows: Rows
    """Pinned if the loader was asked to."""
    state: LoaderState
    """The run's place in the data after this batch."""
    num_targets: int
    """Positions with a target in the whole step, over all ranks."""


def step_rows(layout: Layout, seed: int, position: int, count: int) -> np.ndarray:
    """The `count` rows that a run sees from `position` on, as int64[count]; positions count over epochs."""
    return layout.rows_at(np.arange(position, position + count), seed)


def read_rows(layout: Layout, rows: np.ndarray, *, document_mask: bool = False, pin_memory: bool = False) -> Rows:
    """The given rows (int64[B]) as tensors, with segments and positions if documents are to be kept apart."""
    shape = (len(rows), layout.seq_len)
    dtypes = [torch.int64, torch.int64, *([torch.int32, torch.int64] if document_mask else [])]
    tensors = [torch.empty(shape, dtype=dtype, pin_memory=pin_memory) for dtype in dtypes]
    layout.fill(rows, *(tensor.numpy() for tensor in tensors))
    return Rows(*tensors)


class Loader:
    """An iterator over this rank's batches of a run, from `state` on or from the beginning; also a context manager.

    The step that begins at row `position` of the run has the rows position..position + rows_per_step - 1, and rank r
    has the r-th of world_size equal parts of them.

    Raises ConfigError if the ranks cannot share a step equally, DeviceError for pinned memory without CUDA, and
    DatasetError as `check_position` does. `next` raises DatasetError if no whole step is left, which only a limit of
    epochs can cause, and whatever goes wrong on the reading thread.
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
                f"a step of {rows_per_step} rows cannot be shared equally by {world_size} processes; "
                f"write train.global_batch_tokens={-(-rows_per_step // world_size) * world_size * layout.seq_len}"
            )
        if pin_memory and not torch.cuda.is_available():
            raise DeviceError("pinned memory needs a CUDA device, and this machine has none; leave pin_memory off")
        if state is not None:
            check_position(state, layout, seed)
        self.layout = layout
        self.rows_per_step = rows_per_step
        self.seed = seed
        self._share = slice(rank * rows_per_step // world_size, (rank + 1) * rows_per_step // world_size)
        self._document_mask = document_mask
        self._pin_memory = pin_memory
        self._state = state or self._state_at(0)
        self._next_position = self._state.epoch * layout.num_rows + self._state.samples_consumed
        tokens_per_step = rows_per_step // world_size * layout.seq_len
        # One read covers at most an epoch: each epoch has its own order.
        self._steps_per_read = max(1, min(READ_TOKENS // tokens_per_step, layout.num_rows // rows_per_step))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="packtrain-loader")
        self._coming: deque[Future[list[Batch]]] = deque()
        self._ready: deque[Batch] = deque()
        self._is_closed = False

    def state(self) -> LoaderState:
        """The run's place after the last batch that `next` returned."""
        return self._state

    def close(self) -> None:
        """Stop the thread after its current read. The loader gives no more batches."""
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

    def __exit__(self, *_: object) -> None:
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
                f"the data ends before row {self._next_position + self.rows_per_step:,} of the run, because every dataset "
                "has a limit of epochs; raise max_epochs in data.dataset, or lower train.steps"
            )
        try:
            return self._coming.popleft().result()
        except BaseException:
            # Without the lost batch, the batches after it would be taken for the wrong steps.
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
                read[step * size : (step + 1) * size],
                state=self._state_at(position + (step + 1) * self.rows_per_step),
                num_targets=num_targets[step],
            )
            for step in range(num_steps)
        ]
