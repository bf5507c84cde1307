"""Documents that are packed again in each epoch: every token still once, after its true predecessor, in as many rows, and differently."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.data.memory_stream import BOUNDARY, MemoryStream
from tests.data.rows.test_pack import LENGTHS, PACKINGS, SEQ_LENS, document_of, fill

from packtrain.config.data import IGNORE_INDEX
from packtrain.data.rows import index, repack
from packtrain.data.rows.bestfit import best_fit_decreasing, mix_best_fit
from packtrain.data.rows.pack import Packing, plan
from packtrain.data.rows.repack import RepackedPlan

EPOCHS = st.integers(0, 3)
BOOKS = [700, 31, 250, 8, 90, 64, 64, 513, 12, 300]


def repacked(lengths: list[int], seq_len: int, packing: Packing, seed: int = 7) -> RepackedPlan:
    return RepackedPlan(plan(MemoryStream(lengths), seq_len, packing), seed)


def rows_of_epoch(layout: RepackedPlan, epoch: int) -> np.ndarray:
    return epoch * layout.num_rows + np.arange(layout.num_rows)


@settings(deadline=None, max_examples=150)
@given(lengths=LENGTHS, seq_len=SEQ_LENS, packing=PACKINGS, masked=st.booleans(), epoch=EPOCHS)
@example(lengths=[1], seq_len=1, packing="bestfit", masked=True, epoch=1)
@example(lengths=[0, 0, 9, 0], seq_len=4, packing="concat", masked=False, epoch=1)
@example(lengths=[5, 9, 1], seq_len=4, packing="bestfit", masked=False, epoch=2)
def test_every_token_is_a_target_once_in_each_epoch_after_its_true_predecessor(
    lengths: list[int], seq_len: int, packing: Packing, masked: bool, epoch: int
) -> None:
    layout = repacked(lengths, seq_len, packing)
    rows = rows_of_epoch(layout, epoch)
    filled = fill(layout, rows, masked=masked)
    real = filled.targets != IGNORE_INDEX
    targets, inputs = filled.targets[real], filled.inputs[real]
    assert np.array_equal(np.sort(targets), np.arange(sum(lengths)))
    assert np.array_equal(layout.row_targets(rows), real.sum(axis=1))
    assert np.array_equal(real, np.arange(seq_len) < real.sum(axis=1, keepdims=True))
    assert (filled.inputs[~real] == BOUNDARY).all() and real.any(axis=1).all()
    document = document_of(lengths)
    is_first = np.where(targets > 0, document[targets] != document[targets - 1], True)
    if masked or packing == "bestfit":
        assert np.array_equal(inputs, np.where(is_first, BOUNDARY, targets - 1))
    else:
        # One stream, in which a document follows the last token of another.
        assert np.array_equal(inputs[1:], targets[:-1])
        assert inputs[0] == (BOUNDARY if is_first[0] else targets[0] - 1)
    if masked:
        for of_row, segments, positions in zip(filled.targets, filled.segments, filled.positions, strict=True):
            labels = np.array([-1 if target == IGNORE_INDEX else document[target] for target in of_row])
            # The ring may end within the document that it begins with, and both parts be in one row.
            changes = np.flatnonzero((np.diff(labels) != 0) | ((np.diff(of_row) != 1) & (labels[1:] >= 0))) + 1
            assert segments.tolist() == np.searchsorted(changes, np.arange(seq_len), side="right").tolist()
            starts = np.array([0, *changes])[segments]
            assert positions.tolist() == (np.arange(seq_len) - starts).tolist()


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, seq_len=SEQ_LENS, packing=PACKINGS, epoch=EPOCHS)
def test_sources_and_rows_of_a_document_agree_with_what_a_row_has(
    lengths: list[int], seq_len: int, packing: Packing, epoch: int
) -> None:
    layout = repacked(lengths, seq_len, packing)
    packed = layout.of_epoch(epoch)
    targets = fill(layout, rows_of_epoch(layout, epoch), masked=False).targets
    starts = np.cumsum(lengths) - lengths
    has: dict[int, dict[int, int]] = {}
    for row in range(layout.num_rows):
        for fragment in layout.sources(layout.first_row(epoch) + row):
            first = int(starts[fragment.document]) + fragment.start
            expected = np.arange(first, first + fragment.length)
            assert np.array_equal(targets[row, fragment.offset :][: fragment.length], expected)
            of_document = has.setdefault(fragment.document, {})
            of_document[row] = min(fragment.start, of_document.get(row, fragment.start))
    for document in range(len(lengths)):
        of_document = has.get(document, {})
        assert packed.rows_of(document) == sorted(of_document, key=lambda row: of_document[row])


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, seq_len=SEQ_LENS, packing=PACKINGS, masked=st.booleans(), data=st.data())
def test_a_row_does_not_depend_on_the_rows_and_epochs_beside_it(
    lengths: list[int], seq_len: int, packing: Packing, masked: bool, data: st.DataObject
) -> None:
    layout = repacked(lengths, seq_len, packing)
    rows = np.array(data.draw(st.lists(st.integers(0, 4 * layout.num_rows - 1), min_size=1, max_size=6)))
    together = fill(layout, rows, masked=masked)
    for place, row in enumerate(rows):
        alone = fill(repacked(lengths, seq_len, packing), np.array([row]), masked=masked)
        assert np.array_equal(alone.inputs[0], together.inputs[place])
        assert np.array_equal(alone.targets[0], together.targets[place])
        assert layout.row_targets(rows)[place] == (alone.targets[0] != IGNORE_INDEX).sum()


@pytest.mark.parametrize(("packing", "most_equal"), [("concat", 2), ("bestfit", 28)])
def test_the_first_epoch_is_the_same_and_later_ones_differ(packing: Packing, most_equal: int) -> None:
    """Of the 32 rows, `most_equal` are in both of two epochs: bestfit has fewer ways to pack the same rows."""
    layout, plain = repacked(BOOKS, 64, packing), plan(MemoryStream(BOOKS), 64, packing)
    places = np.arange(3 * layout.num_rows)
    in_order = fill(layout, layout.rows_at(places, 7), masked=False).targets.reshape(3, layout.num_rows, 64)
    without = fill(plain, plain.rows_at(places, 7), masked=False).targets.reshape(3, layout.num_rows, 64)
    assert np.array_equal(in_order[0], without[0])
    assert layout.hash != plain.hash
    epochs = [{row.tobytes() for row in rows} for rows in in_order]
    assert max(len(epochs[one] & epochs[other]) for one, other in ((0, 1), (0, 2), (1, 2))) <= most_equal
    another = fill(repacked(BOOKS, 64, packing, seed=8), rows_of_epoch(layout, 1), masked=False).targets
    assert {row.tobytes() for row in another} != epochs[1], "the order of documents has a seed"
    rows = (layout.rows_at(places, 7) % layout.num_rows).reshape(3, -1)
    assert np.array_equal(np.concatenate([layout.places_in(epoch, rows[epoch], 7) for epoch in range(3)]), places)


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_even_a_single_document_is_cut_elsewhere(packing: Packing) -> None:
    layout = repacked([1000], 64, packing)
    firsts = [fill(layout, rows_of_epoch(layout, epoch), masked=False).targets[:, 0].tolist() for epoch in range(4)]
    assert len({tuple(sorted(first)) for first in firsts}) == 4


@settings(deadline=None, max_examples=100)
@given(lengths=st.lists(st.integers(1, 64), max_size=60), key=st.binary(min_size=16, max_size=16))
def test_pieces_that_are_mixed_fit_into_as_many_rows(lengths: list[int], key: bytes) -> None:
    pieces = np.array(lengths, dtype=np.int64)
    members, ends = mix_best_fit(pieces, 64, key)
    assert len(ends) == len(best_fit_decreasing(pieces, 64)[1])
    assert sorted(members.tolist()) == list(range(len(lengths)))
    assert all(pieces[row].sum() <= 64 for row in np.split(members, ends[:-1])) if len(ends) else True


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_many_documents_are_mapped_from_a_file(
    packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = BOOKS * 3
    in_memory = fill(repacked(lengths, 64, packing), np.arange(3 * 100), masked=True)
    for module in (index, repack):
        monkeypatch.setattr(module, "WINDOW_DOCUMENTS", 30)
    monkeypatch.setattr(repack, "WINDOW_DOCUMENTS", 7)
    stream = MemoryStream(lengths, plan_folder=tmp_path)
    layout = RepackedPlan(plan(stream, 64, packing), 7)
    mapped = fill(layout, np.arange(3 * 100), masked=True)
    assert np.array_equal(in_memory.targets, mapped.targets) and np.array_equal(in_memory.segments, mapped.segments)
    names = {entry.name for entry in tmp_path.iterdir()}
    again = fill(RepackedPlan(plan(stream, 64, packing), 7), np.arange(3 * 100), masked=True)
    assert np.array_equal(again.targets, mapped.targets) and {entry.name for entry in tmp_path.iterdir()} == names
