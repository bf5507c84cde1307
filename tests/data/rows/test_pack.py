"""Every token is a target exactly once, follows its true predecessor, and nothing that fits a row is cut."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.data.memory_stream import BOUNDARY, MemoryStream

from packtrain.config.data import IGNORE_INDEX
from packtrain.data.rows.bestfit import best_fit_decreasing
from packtrain.data.rows.pack import Packing, plan
from packtrain.data.rows.plan import RowPlan
from packtrain.errors import DatasetError


@dataclass(frozen=True)
class Filled:
    inputs: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


def fill(layout: RowPlan, rows: np.ndarray, *, masked: bool) -> Filled:
    shape = (len(rows), layout.seq_len)
    # Rubbish first, so that a position that is not written shows.
    filled = Filled(
        np.full(shape, -7), np.full(shape, -7), np.full(shape, -7, dtype=np.int32), np.full(shape, -7, dtype=np.int64)
    )
    documents = (filled.segments, filled.positions) if masked else ()
    layout.fill(rows, filled.inputs, filled.targets, *documents)
    return filled


def num_padded(layout: RowPlan) -> int:
    return layout.num_rows * layout.seq_len - layout.num_targets


LENGTHS = st.lists(
    st.one_of(st.integers(0, 2), st.integers(0, 12), st.integers(0, 70)), min_size=1, max_size=40
).filter(any)
SEQ_LENS = st.integers(1, 20)
PACKINGS = st.sampled_from(["concat", "bestfit"])


def document_of(lengths: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(lengths)), lengths)


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, seq_len=SEQ_LENS, packing=PACKINGS, masked=st.booleans())
@example(lengths=[1], seq_len=1, packing="bestfit", masked=True)
@example(lengths=[0, 0, 1, 0], seq_len=4, packing="concat", masked=True)
@example(lengths=[4, 4], seq_len=4, packing="bestfit", masked=True)
@example(lengths=[5, 9, 1], seq_len=4, packing="bestfit", masked=False)
@example(lengths=[3, 5], seq_len=1, packing="concat", masked=True)
def test_every_token_is_a_target_exactly_once(lengths: list[int], seq_len: int, packing: Packing, masked: bool) -> None:
    stream = MemoryStream(lengths)
    layout = plan(stream, seq_len, packing)
    filled = fill(layout, np.arange(layout.num_rows), masked=masked)
    real = filled.targets != IGNORE_INDEX
    assert np.array_equal(np.sort(filled.targets[real]), np.arange(stream.num_tokens))
    assert layout.num_targets == stream.num_tokens
    assert num_padded(layout) == int((~real).sum())
    assert np.array_equal(layout.row_targets(np.arange(layout.num_rows)), real.sum(axis=1))
    # Padding comes last in a row, and its input is the boundary token.
    assert np.array_equal(real, np.arange(seq_len) < real.sum(axis=1, keepdims=True))
    assert (filled.inputs[~real] == BOUNDARY).all()
    assert real.any(axis=1).all(), "a row without a target"


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, seq_len=SEQ_LENS, packing=PACKINGS, masked=st.booleans())
@example(lengths=[5, 9, 1], seq_len=4, packing="bestfit", masked=False)
@example(lengths=[2, 0, 0, 3], seq_len=2, packing="concat", masked=True)
def test_each_input_is_the_true_predecessor(lengths: list[int], seq_len: int, packing: Packing, masked: bool) -> None:
    layout = plan(MemoryStream(lengths), seq_len, packing)
    filled = fill(layout, np.arange(layout.num_rows), masked=masked)
    document = document_of(lengths)
    real = filled.targets != IGNORE_INDEX
    target, given_input = filled.targets[real], filled.inputs[real]
    is_first = np.where(target > 0, document[target] != document[target - 1], True)
    has_none = is_first if masked or packing == "bestfit" else target == 0
    assert np.array_equal(given_input, np.where(has_none, BOUNDARY, target - 1))


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, seq_len=SEQ_LENS, packing=PACKINGS)
def test_segments_and_positions_keep_documents_apart(lengths: list[int], seq_len: int, packing: Packing) -> None:
    layout = plan(MemoryStream(lengths), seq_len, packing)
    filled = fill(layout, np.arange(layout.num_rows), masked=True)
    document = document_of(lengths)
    for targets, segments, positions in zip(filled.targets, filled.segments, filled.positions, strict=True):
        labels = [-1 if target == IGNORE_INDEX else int(document[target]) for target in targets]
        changes = [0] + [int(a != b) for a, b in pairwise(labels)]
        assert segments.tolist() == np.cumsum(changes).tolist()
        starts = [0] + [i for i, change in enumerate(changes) if change]
        assert positions.tolist() == [i - max(s for s in starts if s <= i) for i in range(seq_len)]


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, seq_len=SEQ_LENS, packing=PACKINGS, masked=st.booleans(), data=st.data())
def test_a_row_does_not_depend_on_the_rows_beside_it(
    lengths: list[int], seq_len: int, packing: Packing, masked: bool, data: st.DataObject
) -> None:
    layout = plan(MemoryStream(lengths), seq_len, packing)
    whole = fill(layout, np.arange(layout.num_rows), masked=masked)
    rows = np.array(data.draw(st.lists(st.integers(0, layout.num_rows - 1), min_size=1, max_size=8)))
    some = fill(layout, rows, masked=masked)
    for name in ("inputs", "targets", "segments", "positions"):
        assert np.array_equal(getattr(some, name), getattr(whole, name)[rows])


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, seq_len=SEQ_LENS)
def test_bestfit_cuts_nothing_that_fits_a_row(lengths: list[int], seq_len: int) -> None:
    layout = plan(MemoryStream(lengths), seq_len, "bestfit")
    for document, length in enumerate(lengths):
        assert len(layout.rows_of(document)) == -(-length // seq_len)
    assert layout.num_cut_documents == sum(length > seq_len for length in lengths)


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, seq_len=SEQ_LENS)
@pytest.mark.slow
def test_concat_pads_the_last_row_only_and_counts_what_it_cuts(lengths: list[int], seq_len: int) -> None:
    layout = plan(MemoryStream(lengths), seq_len, "concat")
    assert num_padded(layout) == -sum(lengths) % seq_len
    assert layout.num_cut_documents == sum(len(layout.rows_of(d)) > 1 for d in range(len(lengths)))


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, seq_len=SEQ_LENS, packing=PACKINGS)
def test_sources_say_where_every_target_is_from(lengths: list[int], seq_len: int, packing: Packing) -> None:
    layout = plan(MemoryStream(lengths), seq_len, packing)
    targets = fill(layout, np.arange(layout.num_rows), masked=False).targets
    starts = np.cumsum(lengths) - lengths
    rows_of: dict[int, list[tuple[int, int]]] = {}
    for row in range(layout.num_rows):
        told = np.full(seq_len, IGNORE_INDEX)
        for offset, document, start, length in layout.sources(row):
            told[offset : offset + length] = starts[document] + start + np.arange(length)
            rows_of.setdefault(document, []).append((start, row))
        assert np.array_equal(told, targets[row])
    for document in range(len(lengths)):
        assert layout.rows_of(document) == [row for _, row in sorted(rows_of.get(document, []))]


def one_after_another(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as the paper states it: each piece into the fullest row that has room."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@settings(deadline=None, max_examples=300)
@given(data=st.data(), capacity=st.integers(1, 60))
def test_groups_are_placed_as_pieces_one_by_one_would_be(data: st.DataObject, capacity: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=80))
    members, ends = best_fit_decreasing(np.array(lengths, dtype=np.int64), capacity)
    assert sorted(members.tolist()) == list(range(len(lengths)))
    rows = [[lengths[m] for m in row.tolist()] for row in np.split(members, ends[:-1])] if len(ends) else []
    assert all(row == sorted(row, reverse=True) and sum(row) <= capacity for row in rows)
    # Which of two equally full rows is taken is free, how full the rows end is not.
    assert Counter(map(sum, rows)) == Counter(map(sum, one_after_another(lengths, capacity)))


@pytest.mark.parametrize(("seq_len", "mean", "spread"), [(256, 6.0, 1.1), (1024, 6.6, 1.0), (4096, 6.6, 1.0)])
@pytest.mark.slow
def test_bestfit_pads_less_than_a_thousandth_on_web_text(seq_len: int, mean: float, spread: float) -> None:
    lengths = np.exp(np.random.default_rng(1).normal(mean, spread, 200_000)).astype(np.int64) + 1
    layout = plan(MemoryStream(lengths.tolist()), seq_len, "bestfit")
    assert layout.num_targets == lengths.sum()
    assert num_padded(layout) < 0.001 * layout.num_rows * seq_len


@pytest.mark.slow
def test_more_documents_than_a_window_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are packed one by one, and rows, sources and targets agree over their borders."""
    for module in ("index", "pack"):
        monkeypatch.setattr(f"packtrain.data.rows.{module}.WINDOW_DOCUMENTS", 7)
    test_every_token_is_a_target_exactly_once()
    test_bestfit_cuts_nothing_that_fits_a_row()
    test_sources_say_where_every_target_is_from()
    test_concat_pads_the_last_row_only_and_counts_what_it_cuts()


def test_the_plan_hash_covers_everything_that_rows_depend_on() -> None:
    stream = MemoryStream([5, 6, 7])
    same = plan(stream, 4, "concat").hash
    assert plan(MemoryStream([5, 6, 7]), 4, "concat").hash == same
    others = {
        plan(stream, 5, "concat").hash,
        plan(stream, 4, "bestfit").hash,
        plan(MemoryStream([5, 6, 7], name="validation"), 4, "concat").hash,
        plan(MemoryStream([5, 6, 7], manifest_hash="another"), 4, "concat").hash,
    }
    assert len(others | {same}) == 5


def test_a_split_without_tokens_is_refused() -> None:
    with pytest.raises(DatasetError, match="validation split has no tokens"):
        plan(MemoryStream([0, 0], name="validation"), 4, "concat")


def test_ids_above_65535_pass_through() -> None:
    stream = MemoryStream([3, 70_000], boundary_id=100_000, dtype=np.dtype("<u4"))
    layout = plan(stream, 1000, "concat")
    filled = fill(layout, np.array([70]), masked=True)
    assert filled.targets[0, :3].tolist() == [70_000, 70_001, 70_002]
    assert filled.inputs[0, :3].tolist() == [69_999, 70_000, 70_001]
    assert filled.inputs[0, -1] == 100_000


@dataclass(frozen=True)
class MappedStream(MemoryStream):
    """The same stream in a file, as `path`."""

    path: Path = Path()

    @cached_property
    def ids(self) -> np.ndarray:
        np.arange(self.num_tokens, dtype=self.dtype).tofile(self.path)
        return np.memmap(self.path, dtype=self.dtype, mode="r")

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.ids[start:stop]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux how a file is mapped")
def test_mapped_shards_are_not_read_ahead(tmp_path: Path) -> None:
    """Reading ahead makes every row of a cold dataset cost megabytes."""
    stream = MappedStream([5000, 5000], path=tmp_path / "00000.tok")
    layout = plan(stream, 8, "concat")
    assert fill(layout, np.array([1]), masked=False).targets.tolist() == [list(range(8, 16))]
    mappings = Path("/proc/self/smaps").read_text().split("VmFlags:")
    (flags,) = [after.splitlines()[0] for before, after in pairwise(mappings) if str(stream.path) in before]
    assert "rr" in flags.split()
