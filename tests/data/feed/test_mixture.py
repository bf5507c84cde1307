"""A mixture sees the rows of each dataset in its own epochs, by weight, and a batch depends on its place alone."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.corpora import recipe, sentences, write_jsonl
from tests.data.memory_stream import BOUNDARY, MemoryStream

from packtrain.config.data import IGNORE_INDEX, DataConfig
from packtrain.data.feed.datasets import open_run_datasets
from packtrain.data.feed.loader import Batch, Loader, read_rows
from packtrain.data.feed.mixture import Mixture, Share
from packtrain.data.feed.position import LoaderState
from packtrain.data.format.shards import open_dataset
from packtrain.data.rows.pack import Packing, plan
from packtrain.data.rows.plan import RowPlan
from packtrain.errors import ConfigError, DatasetError, TokenizerError
from packtrain.prepare.run import prepare

LENGTHS = ([5, 1, 0, 17, 3, 8, 40, 2, 2, 9, 30, 4], [9] * 9, [3, 50, 1, 1])
STEP = 1000
"""The ids of dataset n begin at n + 1 times this, so that a target shows its dataset."""


class NumberedStream(MemoryStream):
    def read(self, start: int, stop: int) -> np.ndarray:
        return super().read(start, stop) + self.dtype.type(STEP * (1 + int(self.manifest_hash)))


def plans(seq_len: int, packing: Packing, count: int = 3) -> list[RowPlan]:
    return [
        plan(NumberedStream(lengths, manifest_hash=str(number)), seq_len, packing)
        for number, lengths in enumerate(LENGTHS[:count])
    ]


def mixture(weights: list[int], limits: list[float | None], seq_len: int = 8, packing: Packing = "concat") -> Mixture:
    parts = plans(seq_len, packing, len(weights))
    return Mixture([Share(part, weight, limit) for part, weight, limit in zip(parts, weights, limits, strict=True)])


WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=3)
LIMITS = st.one_of(st.none(), st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]))
PACKINGS = st.sampled_from(["concat", "bestfit"])


def take(loader: Loader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def assert_same(one: Batch, other: Batch) -> None:
    assert one.state == other.state and one.num_targets == other.num_targets
    for name in ("inputs_BT", "targets_BT", "segments_BT", "positions_BT"):
        a, b = getattr(one.rows, name), getattr(other.rows, name)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@settings(deadline=None, max_examples=60)
@given(weights=WEIGHTS, packing=PACKINGS, seq_len=st.integers(1, 20), seed=st.integers(0, 5), data=st.data())
def test_each_dataset_goes_through_its_own_epochs(
    weights: list[int], packing: Packing, seq_len: int, seed: int, data: st.DataObject
) -> None:
    limits = data.draw(st.lists(LIMITS, min_size=len(weights), max_size=len(weights)))
    mixed = mixture(weights, limits, seq_len, packing)
    places = np.arange(mixed.num_places or 3 * mixed.num_rows)
    part, rows = mixed.locate(mixed.rows_at(places, seed))
    for number, (alone, limit) in enumerate(zip(mixed.parts, limits, strict=True)):
        own = np.flatnonzero(part == number)
        assert np.array_equal(rows[own], alone.rows_at(np.arange(len(own)), seed))
        assert np.array_equal(mixed.places_of(number, np.arange(len(own))), own)
        assert mixed.seen_by(number, len(places) // 2) == int((own < len(places) // 2).sum())
        if limit is not None:
            assert len(own) <= max(1, int(limit * alone.num_rows))
            if mixed.num_places is not None:
                assert len(own) == max(1, int(limit * alone.num_rows))


@settings(deadline=None, max_examples=40)
@given(
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=3), first=st.integers(0, 10**9), length=st.integers(1, 200)
)
def test_every_window_of_a_run_has_its_shares(weights: list[int], first: int, length: int) -> None:
    mixed = mixture(weights, [None] * len(weights))
    part, _ = mixed.locate(mixed.rows_at(np.arange(first, first + length), 1))
    for number, weight in enumerate(weights):
        assert abs(int((part == number).sum()) - length * weight / sum(weights)) < 2


@settings(deadline=None, max_examples=40)
@given(weights=WEIGHTS, packing=PACKINGS, seq_len=st.integers(1, 20), seed=st.integers(0, 5))
@example(weights=[1], packing="bestfit", seq_len=8, seed=0)
def test_rows_are_those_of_a_naive_reading(weights: list[int], packing: Packing, seq_len: int, seed: int) -> None:
    """Inputs, targets, segments and positions, from the documents alone."""
    mixed = mixture(weights, [None] * len(weights), seq_len, packing)
    rows = mixed.rows_at(np.arange(2 * mixed.num_rows), seed)
    read = read_rows(mixed, rows, document_mask=True)
    assert read.segments_BT is not None and read.positions_BT is not None
    assert mixed.row_targets(rows).tolist() == (read.targets_BT != IGNORE_INDEX).sum(1).tolist()
    document_of = [np.repeat(np.arange(len(lengths)), lengths) for lengths in LENGTHS]
    for inputs, targets, segments, positions in zip(
        read.inputs_BT.tolist(),
        read.targets_BT.tolist(),
        read.segments_BT.tolist(),
        read.positions_BT.tolist(),
        strict=True,
    ):
        source, documents = targets[0] // STEP - 1, []
        for target in targets:
            assert target == IGNORE_INDEX or target // STEP - 1 == source, "a row of two datasets"
            documents.append(-1 if target == IGNORE_INDEX else int(document_of[source][target % STEP]))
        starts = [0, *(i for i, (a, b) in enumerate(pairwise(documents), start=1) if a != b)]
        for i, target in enumerate(targets):
            start = max(s for s in starts if s <= i)
            assert (segments[i], positions[i]) == (starts.index(start), i - start)
            at = target % STEP
            inside = documents[i] >= 0 and at > 0 and document_of[source][at - 1] == documents[i]
            assert inputs[i] == (target - 1 if inside else BOUNDARY)


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_a_mixture_of_one_is_its_dataset(packing: Packing) -> None:
    [alone] = plans(8, packing, 1)
    mixed = Mixture([Share(alone, 7)])
    assert (mixed.hash, mixed.manifest_hash) == (alone.hash, alone.manifest_hash)
    assert (mixed.num_rows, mixed.num_targets, mixed.num_places) == (alone.num_rows, alone.num_targets, None)
    batches = [take(Loader(layout, rows_per_step=5, seed=3, document_mask=True), 40) for layout in (alone, mixed)]
    for one, other in zip(*batches, strict=True):
        assert_same(one, other)


@settings(deadline=None, max_examples=40)
@given(weights=WEIGHTS, rows_per_step=st.integers(1, 7), stop=st.integers(0, 12), mask=st.booleans(), data=st.data())
def test_resuming_anywhere_continues_with_the_same_batches(
    weights: list[int], rows_per_step: int, stop: int, mask: bool, data: st.DataObject
) -> None:
    limits = data.draw(st.lists(LIMITS, min_size=len(weights), max_size=len(weights)))
    mixed = mixture(weights, limits)
    steps = 18 if mixed.num_places is None else min(18, mixed.num_places // rows_per_step)
    stop = min(stop, steps)

    def loader(state: LoaderState | None) -> Loader:
        return Loader(mixed, rows_per_step=rows_per_step, seed=9, document_mask=mask, state=state)

    with loader(None) as first:
        whole = [next(first) for _ in range(stop)]
        saved = json.loads(json.dumps(first.state().to_dict()))
        assert len(saved) == 5
        whole += [next(first) for _ in range(steps - stop)]
    resumed = take(loader(LoaderState.from_dict(saved)), steps - stop)
    for batch, expected in zip(resumed, whole[stop:], strict=True):
        assert_same(batch, expected)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_same_global_batch_and_another_number_of_them_goes_on(world_size: int) -> None:
    mixed = mixture([5, 2, 1], [None, 2.0, None])
    whole = take(Loader(mixed, rows_per_step=6, seed=4), 12)
    shares = [
        take(Loader(mixed, rows_per_step=6, rank=rank, world_size=world_size, seed=4, state=whole[3].state), 8)
        for rank in range(world_size)
    ]
    for batch, parts in zip(whole[4:], zip(*shares, strict=True), strict=True):
        assert torch.equal(torch.cat([part.rows.targets_BT for part in parts]), batch.rows.targets_BT)
        assert {part.num_targets for part in parts} == {batch.num_targets}
        assert {part.state for part in parts} == {batch.state}


def test_the_data_ends_where_every_source_is_used_up() -> None:
    mixed = mixture([3, 1], [1.0, 2.0])
    assert mixed.num_places is not None
    steps = mixed.num_places // 4
    with Loader(mixed, rows_per_step=4, seed=1) as loader:
        batches = [next(loader) for _ in range(steps)]
        with pytest.raises(DatasetError, match=r"the data ends before row .*raise max_epochs"):
            next(loader)
    seen = Counter(target for batch in batches for target in batch.rows.targets_BT.flatten().tolist())
    assert max(seen[t] for t in range(STEP, STEP + sum(LENGTHS[0]))) == 1
    assert max(seen[t] for t in range(2 * STEP, 2 * STEP + sum(LENGTHS[1]))) == 2


@pytest.mark.parametrize(
    ("weights", "limits"),
    [([1, 1], [None, None]), ([2, 1], [None, 3.0]), ([2, 1], [3.0, None]), ([4, 2], [None, None])],
)
def test_a_state_of_other_weights_or_limits_is_refused(weights: list[int], limits: list[float | None]) -> None:
    with Loader(mixture([2, 1], [None, None]), rows_per_step=2, seed=1) as loader:
        state = next(loader).state
    with pytest.raises(DatasetError, match="same folders, weights and max_epochs"):
        Loader(mixture(weights, limits), rows_per_step=2, seed=1, state=state)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared datasets: two of one tokenizer, a third of another, and a copy."""
    folder = tmp_path_factory.mktemp("mixed")
    made = {name: folder / name for name in ("web", "code", "other", "copy", "no-eos")}
    source = {
        name: write_jsonl(folder / f"{name}.jsonl", sentences(60, seed=i)) for i, name in enumerate(("web", "code"))
    }
    prepare(recipe("jsonl", source["web"]), made["web"])
    same = {"tokenizer__name": str(made["web"] / "tokenizer"), "tokenizer__vocab_size": None}
    prepare(recipe("jsonl", source["code"], **same), made["code"])
    prepare(recipe("jsonl", source["web"], tokenizer__vocab_size=290), made["other"])
    prepare(recipe("jsonl", source["web"]), made["copy"])
    prepare(recipe("jsonl", source["code"], tokenizer__eos=False, **same), made["no-eos"])
    return made


def config(folders: dict[str, Path], **entries: float) -> DataConfig:
    return DataConfig.model_validate({"dataset": {str(folders[name]): weight for name, weight in entries.items()}})


def test_the_order_of_naming_and_the_scale_of_weights_do_not_matter(folders: dict[str, Path]) -> None:
    one, other = (
        open_run_datasets(config(folders, web=0.7, code=0.3)),
        open_run_datasets(config(folders, code=3, web=7)),
    )
    assert one.hash == other.hash != open_run_datasets(config(folders, web=0.6, code=0.4)).hash
    assert (
        [(s.name, s.weight) for s in one.parts]
        == [(s.name, s.weight) for s in other.parts]
        == [("web", 7), ("code", 3)]
    )
    layouts = [sources.layout(16, "bestfit") for sources in (one, other)]
    assert layouts[0].hash == layouts[1].hash and layouts[0].manifest_hash == layouts[1].manifest_hash == one.hash
    assert np.array_equal(*(layout.rows_at(np.arange(500), 3) for layout in layouts))


def test_one_in_a_table_is_the_dataset_itself(folders: dict[str, Path]) -> None:
    table, plain = (
        open_run_datasets(config(folders, web=0.2)),
        open_run_datasets(DataConfig(dataset=str(folders["web"]))),
    )
    assert table.hash == plain.hash == plain.parts[0].dataset.manifest.hash
    alone = plan(open_dataset(folders["web"]).split("train"), 16, "concat")
    assert (table.layout(16, "concat").hash, table.layout(16, "concat").num_places) == (alone.hash, None)


def test_a_limit_alone_gives_one_dataset_an_end(folders: dict[str, Path]) -> None:
    entry = {"weight": 1, "max_epochs": 2}
    sources = open_run_datasets(DataConfig.model_validate({"dataset": {str(folders["web"]): entry}}))
    layout, plain = sources.layout(16, "concat"), open_run_datasets(config(folders, web=1)).layout(16, "concat")
    assert layout.num_places == 2 * plain.num_rows and (layout.hash, sources.hash) == (plain.hash, plain.manifest_hash)


def test_what_does_not_fit_together_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(TokenizerError, match=r"another tokenizer .*prepare it again with tokenizer\.name="):
        open_run_datasets(config(folders, web=1, other=1))
    with pytest.raises(TokenizerError, match="same control tokens around documents"):
        open_run_datasets(config(folders, web=1, **{"no-eos": 1}))
    with pytest.raises(DatasetError, match="are the same dataset"):
        open_run_datasets(config(folders, web=1, copy=1))
    with pytest.raises(ConfigError, match=r"less than one part in 65,536"):
        open_run_datasets(config(folders, web=1, code=1e-9))
    with pytest.raises(DatasetError, match="nowhere is not a prepared dataset"):
        open_run_datasets(DataConfig.model_validate({"dataset": {str(folders["web"]): 1, "nowhere": 1}}))
    with pytest.raises(ConfigError, match="no dataset is named"):
        open_run_datasets(DataConfig())


def test_the_outlook_says_how_often_each_dataset_is_seen(folders: dict[str, Path]) -> None:
    tables = {str(folders["web"]): 1, str(folders["code"]): {"weight": 3, "max_epochs": 1}}
    sources = open_run_datasets(DataConfig.model_validate({"dataset": tables}))
    layout = sources.layout(16, "concat")
    code, web = sources.outlook(layout, 4, 10_000)
    assert (code.name, code.epochs, code.share) == ("code", 1.0, 0.75) and web.last_step is None
    part, _ = layout.locate(layout.rows_at(np.arange(10**4), 0))
    assert code.last_step == int(np.flatnonzero(part == 0)[-1]) // 4 + 1
    assert code.seen + web.seen == 40_000
    assert str(code) == f"code: 75.00% of the tokens, seen 1.00 times, used up at step {code.last_step:,}"
    before = sources.outlook(layout, 4, code.last_step - 1)[0]
    assert before.last_step is None and before.seen < code.seen
