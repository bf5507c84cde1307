"""A batch is a function of its position: it is the same when resumed, split over ranks or read ahead; and the thread ends."""

import json
import threading
from collections import Counter
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.memory_stream import MemoryStream

from packtrain.config.data import IGNORE_INDEX
from packtrain.data.feed.loader import PREFETCHED_READS, Batch, Loader, read_rows, step_rows
from packtrain.data.feed.position import LoaderState
from packtrain.data.rows.pack import Packing, plan
from packtrain.data.rows.plan import RowPlan
from packtrain.data.rows.repack import RepackedPlan
from packtrain.errors import ConfigError, DatasetError, DeviceError

LENGTHS = [5, 1, 0, 17, 3, 8, 40, 2, 2, 9, 30, 4]


@pytest.fixture
def stream() -> MemoryStream:
    return MemoryStream(LENGTHS)


def assert_same(one: Batch, other: Batch) -> None:
    assert one.state == other.state and one.num_targets == other.num_targets
    for name in ("inputs_BT", "targets_BT", "segments_BT", "positions_BT"):
        a, b = getattr(one.rows, name), getattr(other.rows, name)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def take(loader: Loader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
@pytest.mark.parametrize("document_mask", [False, True])
def test_shapes_and_types(stream: MemoryStream, packing: Packing, document_mask: bool) -> None:
    layout = plan(stream, 8, packing)
    (batch,) = take(Loader(layout, rows_per_step=6, seed=1, document_mask=document_mask), 1)
    assert batch.rows.inputs_BT.shape == batch.rows.targets_BT.shape == (6, 8)
    assert batch.rows.inputs_BT.dtype == batch.rows.targets_BT.dtype == torch.int64
    if document_mask:
        assert batch.rows.segments_BT is not None and batch.rows.positions_BT is not None
        assert (batch.rows.segments_BT.dtype, batch.rows.positions_BT.dtype) == (torch.int32, torch.int64)
        assert batch.rows.segments_BT.shape == batch.rows.positions_BT.shape == (6, 8)
    else:
        assert batch.rows.segments_BT is None and batch.rows.positions_BT is None


def lay_out(stream: MemoryStream, seq_len: int, packing: Packing, repack_seed: int | None) -> RowPlan:
    first = plan(stream, seq_len, packing)
    return first if repack_seed is None else RepackedPlan(first, repack_seed)


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
@pytest.mark.parametrize("repack_seed", [None, 3])
def test_an_epoch_has_every_token_as_a_target_once(
    stream: MemoryStream, packing: Packing, repack_seed: int | None
) -> None:
    layout = lay_out(stream, 8, packing, repack_seed)
    epochs = 5
    batches = take(Loader(layout, rows_per_step=5, seed=3), layout.num_rows * epochs // 5)
    seen = Counter(t for batch in batches for t in batch.rows.targets_BT.flatten().tolist() if t != IGNORE_INDEX)
    assert seen == dict.fromkeys(range(stream.num_tokens), epochs)
    assert sum(batch.num_targets for batch in batches) == stream.num_tokens * epochs
    state = batches[-1].state
    assert (state.epoch, state.samples_consumed) == (epochs, 0)
    tokens = np.concatenate([batch.rows.targets_BT.numpy() for batch in batches]).reshape(epochs, -1)
    assert all(set(epoch[epoch != IGNORE_INDEX].tolist()) == set(range(stream.num_tokens)) for epoch in tokens)


def test_every_epoch_has_an_order_of_its_own(stream: MemoryStream) -> None:
    layout = plan(stream, 2, "concat")
    orders = [tuple(step_rows(layout, 3, epoch * layout.num_rows, layout.num_rows).tolist()) for epoch in range(4)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(layout.num_rows)) for order in orders)
    assert step_rows(layout, 4, 0, layout.num_rows).tolist() != list(orders[0])


@settings(deadline=None, max_examples=40)
@given(
    seq_len=st.integers(1, 30),
    packing=st.sampled_from(["concat", "bestfit"]),
    rows_per_step=st.integers(1, 40),
    stop=st.integers(0, 12),
    document_mask=st.booleans(),
    repack_seed=st.sampled_from([None, 9]),
)
def test_resuming_anywhere_goes_on_with_the_same_batches(
    seq_len: int, packing: Packing, rows_per_step: int, stop: int, document_mask: bool, repack_seed: int | None
) -> None:
    """Includes steps of more rows than the dataset has, and steps across two epochs."""
    stream = MemoryStream(LENGTHS)

    def loader(state: LoaderState | None) -> Loader:
        layout = lay_out(stream, seq_len, packing, repack_seed)
        return Loader(layout, rows_per_step=rows_per_step, seed=9, document_mask=document_mask, state=state)

    with loader(None) as first:
        whole = [next(first) for _ in range(stop)]
        # The state counts batches returned, not batches read ahead.
        saved = json.loads(json.dumps(first.state().to_dict()))
        whole += [next(first) for _ in range(6)]
    for batch, expected in zip(take(loader(LoaderState.from_dict(saved)), 6), whole[stop:], strict=True):
        assert_same(batch, expected)


def test_a_batch_at_a_position_is_the_one_that_iterating_gives(stream: MemoryStream) -> None:
    layout = plan(stream, 8, "bestfit")
    loader = Loader(layout, rows_per_step=4, seed=2, document_mask=True)
    for step, batch in enumerate(take(loader, 20)):
        assert_same(loader._read(step * 4, 1)[0], batch)
        rows = step_rows(layout, 2, step * 4, 4)
        assert torch.equal(read_rows(layout, rows).targets_BT, batch.rows.targets_BT)


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("repack_seed", [None, 4])
def test_ranks_share_the_same_global_batch(
    stream: MemoryStream, packing: Packing, world_size: int, repack_seed: int | None
) -> None:
    layout = lay_out(stream, 8, packing, repack_seed)
    whole = take(Loader(layout, rows_per_step=6, seed=4), 8)
    shares = [
        take(Loader(layout, rows_per_step=6, rank=rank, world_size=world_size, seed=4), 8) for rank in range(world_size)
    ]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(torch.cat([part.rows.targets_BT for part in parts]), batch.rows.targets_BT)
        assert torch.equal(torch.cat([part.rows.inputs_BT for part in parts]), batch.rows.inputs_BT)
        # Known without communication with the other ranks.
        assert {part.num_targets for part in parts} == {batch.num_targets}
        assert batch.num_targets == int((batch.rows.targets_BT != IGNORE_INDEX).sum())
        assert {part.state for part in parts} == {batch.state}


def test_another_world_size_resumes_the_same_run(stream: MemoryStream) -> None:
    layout = plan(stream, 8, "concat")
    first = take(Loader(layout, rows_per_step=4, rank=0, world_size=4, seed=4), 7)
    resumed = take(Loader(layout, rows_per_step=4, seed=4, state=first[-1].state), 3)
    expected = take(Loader(layout, rows_per_step=4, seed=4), 10)[7:]
    for batch, other in zip(resumed, expected, strict=True):
        assert_same(batch, other)


def test_a_far_position_is_where_counting_leads(stream: MemoryStream) -> None:
    layout = plan(stream, 8, "concat")
    epoch = 10**9
    state = LoaderState(stream.manifest_hash, layout.hash, 5, epoch, 7)
    (batch,) = take(Loader(layout, rows_per_step=2, seed=5, state=state), 1)
    assert (batch.state.epoch, batch.state.samples_consumed) == (epoch, 9)
    rows = step_rows(layout, 5, epoch * layout.num_rows, layout.num_rows)
    assert torch.equal(read_rows(layout, rows[7:9]).targets_BT, batch.rows.targets_BT)


def test_iterating_anew_goes_on_where_the_loader_stands(stream: MemoryStream) -> None:
    layout = plan(stream, 8, "concat")
    with Loader(layout, rows_per_step=2, seed=5) as loader:
        batches = [next(iter(loader)) for _ in range(4)]
    assert [batch.state.samples_consumed for batch in batches] == [2, 4, 6, 8]


def test_batches_handed_out_are_never_written_again(stream: MemoryStream) -> None:
    layout = plan(stream, 8, "concat")
    with Loader(layout, rows_per_step=2, seed=5, document_mask=True) as loader:
        batches = [next(loader) for _ in range(60)]
        for step, batch in enumerate(batches):
            assert_same(batch, loader._read(step * 2, 1)[0])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"manifest_hash": "f" * 32}, "trained on dataset ffffffffffff.*set data.dataset"),
        ({"plan_hash": "f" * 32}, "laid out by plan ffffffffffff.*data.seq_len, data.packing and data.repack"),
        ({"seed": 6}, "ordered by seed 6.*write train.seed=6"),
        ({"samples_consumed": 10**6}, "row 1000000 of epoch 0, does not exist"),
        ({"epoch": -1}, "of epoch -1, does not exist"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    stream: MemoryStream, change: dict[str, str | int], sentence: str
) -> None:
    layout = plan(stream, 8, "concat")
    state = LoaderState(stream.manifest_hash, layout.hash, 5, 0, 3)
    with pytest.raises(DatasetError, match=sentence):
        Loader(layout, rows_per_step=2, seed=5, state=replace(state, **change))


@pytest.mark.parametrize("broken", [{}, {"epoch": "0"}, {"epoch": None}, {"extra": 1}])
def test_a_damaged_state_is_refused(broken: dict[str, object]) -> None:
    whole = LoaderState("m", "p", 1, 0, 3).to_dict()
    values = {**whole, **broken} if broken else {}
    with pytest.raises(DatasetError, match="damaged"):
        LoaderState.from_dict(values)


def test_rows_that_do_not_divide_over_the_ranks_are_refused(stream: MemoryStream) -> None:
    with pytest.raises(ConfigError, match=r"step of 5 rows.*2 processes.*train\.global_batch_tokens=48"):
        Loader(plan(stream, 8, "concat"), rows_per_step=5, world_size=2, seed=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_pinned_memory_without_cuda_is_refused(stream: MemoryStream) -> None:
    with pytest.raises(DeviceError, match="needs a CUDA device"):
        Loader(plan(stream, 8, "concat"), rows_per_step=5, seed=1, pin_memory=True)


@pytest.mark.gpu
def test_pinned_batches_hold_the_same_rows(stream: MemoryStream) -> None:
    layout = plan(stream, 8, "bestfit")
    plain = take(Loader(layout, rows_per_step=4, seed=1, document_mask=True), 30)
    pinned = take(Loader(layout, rows_per_step=4, seed=1, document_mask=True, pin_memory=True), 30)
    copies = [batch.rows.inputs_BT.to("cuda", non_blocking=True) for batch in pinned]
    for batch, expected, copy in zip(pinned, plain, copies, strict=True):
        assert batch.rows.inputs_BT.is_pinned()
        assert_same(batch, expected)
        assert torch.equal(copy.cpu(), expected.rows.inputs_BT)


class TornDiskError(OSError):
    pass


@dataclass(frozen=True)
class TornStream(MemoryStream):
    """Its second shard cannot be read."""

    def read(self, start: int, stop: int) -> np.ndarray:
        if stop > self.shards[0].tokens:
            raise TornDiskError("unreadable")
        return super().read(start, stop)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("packtrain-loader")]


def test_an_error_on_the_thread_reaches_the_consumer_and_nothing_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packtrain.data.feed.loader.READ_TOKENS", 1)
    stream = TornStream([40, 8], shard_documents=1)
    layout = plan(stream, 8, "concat")
    torn_at = step_rows(layout, 1, 0, layout.num_rows).tolist().index(5)
    assert torn_at > 0
    with Loader(layout, rows_per_step=1, seed=1) as loader:
        for step in range(torn_at):
            assert next(loader).state.samples_consumed == step + 1
        with pytest.raises(TornDiskError, match="unreadable"):
            next(loader)
        with pytest.raises(RuntimeError, match="closed"):
            next(loader)
        assert loader.state().samples_consumed == torn_at
    assert not loader_threads()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_stopping_early_ends_the_thread(stream: MemoryStream, taken: int) -> None:
    loader = Loader(plan(stream, 8, "concat"), rows_per_step=2, seed=1)
    for _ in range(taken):
        next(loader)
    loader.close()
    loader.close()
    assert not loader_threads()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_an_error_in_the_consumer_ends_the_thread(stream: MemoryStream) -> None:
    loader = Loader(plan(stream, 8, "concat"), rows_per_step=2, seed=1)
    with pytest.raises(KeyError), loader:
        next(loader)
        raise KeyError
    assert not loader_threads()


@dataclass(frozen=True)
class GatedStream(MemoryStream):
    """Sets `begun` at the start of a read, and waits for `gate`."""

    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def read(self, start: int, stop: int) -> np.ndarray:
        self.begun.set()
        assert self.gate.wait(timeout=30)
        return super().read(start, stop)


def test_closing_while_the_consumer_waits_lets_both_go() -> None:
    stream = GatedStream(LENGTHS)
    loader = Loader(plan(stream, 8, "concat"), rows_per_step=1000, seed=1)
    outcome: list[BaseException | Batch] = []

    def consume() -> None:
        try:
            while True:
                outcome.append(next(loader))
        except (CancelledError, RuntimeError) as error:
            outcome.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert stream.begun.wait(timeout=30)
    closer = threading.Thread(target=loader.close)
    closer.start()
    stream.gate.set()
    closer.join(timeout=30)
    consumer.join(timeout=30)
    assert not closer.is_alive() and not consumer.is_alive() and not loader_threads()
    assert isinstance(outcome[-1], CancelledError | RuntimeError)


def test_no_more_is_read_ahead_than_said() -> None:
    """A consumer that stops asking stops the reading."""
    stream = MemoryStream([64] * 64)
    loader = Loader(plan(stream, 64, "concat"), rows_per_step=64, seed=1)
    with loader:
        next(loader)
        assert len(loader._coming) == PREFETCHED_READS
