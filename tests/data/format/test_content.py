"""Files of a dataset are compared with its manifest before they are used, and one that shrinks later is noticed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.corpora import reseal

from packtrain.data.format.content import check_content
from packtrain.data.format.manifest import SPLITS
from packtrain.data.format.shards import open_dataset
from packtrain.data.rows.gather import Gather
from packtrain.data.rows.pack import plan
from packtrain.errors import DatasetChangedError, DatasetError
from packtrain.storage.atomic import hash_file


@pytest.fixture
def copy(tiny_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("spoil", [flip, blank])
@pytest.mark.parametrize("name", ["train/00001.tok", "validation/00000.tok"])
def test_content_that_changed_is_found(copy: Path, spoil: Callable[[Path], None], name: str) -> None:
    spoil(copy / name)
    dataset = open_dataset(copy)
    assert check_content(dataset, "none") == 0
    for mode in ("full", "sample"):
        with pytest.raises(
            DatasetError, match=rf"shard {name.partition('.')[0]} is refused: the content of .*tok changed"
        ):
            check_content(dataset, mode)
    other = [side for side in SPLITS if not name.startswith(side)]
    check_content(dataset, "full", sides=other)


def test_only_all_of_it_has_the_sources(copy: Path) -> None:
    flip(copy / "train/00000.src.parquet")
    dataset = open_dataset(copy)
    check_content(dataset, "sample")
    with pytest.raises(DatasetError, match=r"the content of 00000\.src\.parquet changed"):
        check_content(dataset, "full")


def test_a_sample_keeps_to_its_budget_and_sees_every_shard_in_time(tiny_dataset: Path) -> None:
    dataset = open_dataset(tiny_dataset)
    sizes = {
        (side, shard.name): shard.files["tok"].size + shard.files["idx.npy"].size
        for side in SPLITS
        for shard in dataset.manifest.splits[side]
    }
    assert check_content(dataset, "sample") == sum(sizes.values())
    read = [check_content(dataset, "sample", seed=seed, budget=3_000) for seed in range(40)]
    assert max(read) <= 3_000 + 2 * max(sizes.values()) < sum(sizes.values())
    assert len(set(read)) > 1
    assert read[7] == check_content(dataset, "sample", seed=7, budget=3_000)


@pytest.mark.parametrize("mode", ["full", "sample"])
def test_processes_divide_the_work(tiny_dataset: Path, mode: str) -> None:
    dataset = open_dataset(tiny_dataset)
    parts = [check_content(dataset, mode, seed=3, share=(number, 3)) for number in range(3)]
    assert sum(parts) == check_content(dataset, mode, seed=3) and min(parts) > 0
    assert check_content(dataset, mode, should_stop=lambda: True) == 0


def test_an_index_out_of_order_is_found_even_if_its_hash_fits(copy: Path) -> None:
    path = copy / "train/00000.idx.npy"
    ends = np.load(path)
    ends[[1, 2]] = ends[[2, 1]]
    np.save(path, ends)
    reseal(copy, lambda m: m["splits"]["train"][0]["files"]["idx.npy"].update(hash=hash_file(path)))
    split = open_dataset(copy).split("train")
    for read in (
        lambda: check_content(open_dataset(copy), "sample"),
        lambda: split.shard_ends(0),
        lambda: split.document_ends,
    ):
        with pytest.raises(DatasetError, match="its ends of documents do not rise"):
            read()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_file_that_is_cut_short_while_it_is_read_ends_with_a_sentence(copy: Path) -> None:
    split = open_dataset(copy).split("train")
    gather, rows = Gather(split), plan(split, 16, "bestfit")
    out = np.zeros((4, 16), np.int64)
    rows.fill(np.arange(4), out, out.copy())
    split.read(0, 8)
    ends = split.shard_ends(0)
    assert ends[-1] == split.shards[0].tokens
    cut(copy / "train/00000.tok")
    far = np.array([split.shards[0].tokens - 4])
    for read in (
        lambda: split.read(0, 8),
        lambda: gather.at(far),
        lambda: gather.copy(far, np.array([2]), np.array([0]), np.zeros(8, split.dtype)),
        lambda: rows.fill(np.arange(rows.num_rows), *np.zeros((2, rows.num_rows, 16), np.int64)),
    ):
        with pytest.raises(DatasetChangedError, match=r"00000\.tok was cut short while it was in use"):
            read()
    cut(copy / "train/00001.tok")
    with pytest.raises(DatasetChangedError, match=r"00001\.tok was (changed|cut short) while it was in use"):
        split.read(split.shards[0].tokens, split.num_tokens)
    split.read(sum(shard.tokens for shard in split.shards[:2]), split.num_tokens)


def test_an_index_or_a_plan_that_is_cut_short_is_noticed(copy: Path) -> None:
    split = open_dataset(copy).split("train")
    rows = plan(split, 16, "bestfit")
    assert rows.index.span(1) > (0, 0)
    cut(copy / "train/00000.idx.npy")
    with pytest.raises(DatasetChangedError, match=r"00000\.idx\.npy was cut short"):
        rows.index.span(1)
    with pytest.raises(DatasetChangedError, match=r"00000\.idx\.npy was changed"):
        split.shard_ends(0)
    for path in (copy / "plans").glob("*/member_starts.bin"):
        cut(path)
    with pytest.raises(DatasetChangedError, match=r"member_starts\.bin was cut short"):
        rows.row_targets(np.arange(2))
