"""A dataset opens as it was written, and a shard that does not fit its manifest is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora import reseal

from packtrain.data.format.manifest import TokenizerInfo, boundary_id, id_dtype
from packtrain.data.format.shards import Dataset, open_dataset
from packtrain.data.inspect import find_sources
from packtrain.errors import DatasetError


@pytest.fixture
def copy(tiny_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))


def whole(dataset: Dataset, name: str) -> np.ndarray:
    shards = sorted((dataset.folder / name).glob("*.tok"))
    return np.concatenate([np.fromfile(path, "<u2") for path in shards])


@settings(deadline=None)
@given(st.data())
def test_read_is_a_slice_of_the_whole_stream(tiny_dataset: Path, data: st.DataObject) -> None:
    split = open_dataset(tiny_dataset).split("train")
    stream = whole(open_dataset(tiny_dataset), "train")
    start = data.draw(st.integers(0, split.num_tokens))
    stop = data.draw(st.integers(start, split.num_tokens))
    assert (split.read(start, stop) == stream[start:stop]).all()
    assert len(split.read(start, stop)) == stop - start


def test_documents_end_in_eos_and_begin_with_bos(tiny_dataset: Path) -> None:
    dataset = open_dataset(tiny_dataset)
    tokenizer = dataset.manifest.tokenizer
    for name in ("train", "validation"):
        split = dataset.split(name)
        assert len(split.shards) > 1
        stream = split.read(0, split.num_tokens)
        ends = split.document_ends
        assert len(ends) == split.num_documents
        assert (stream[ends - 1] == tokenizer.eos_id).all()
        assert (stream[np.concatenate([[0], ends[:-1]])] == tokenizer.bos_id).all()
        assert np.isin(stream, [tokenizer.bos_id, tokenizer.eos_id]).sum() == 2 * len(ends)


def test_positions_outside_are_refused(tiny_dataset: Path) -> None:
    split = open_dataset(tiny_dataset).split("train")
    for start, stop in ((-1, 3), (5, 4), (0, split.num_tokens + 1)):
        with pytest.raises(IndexError):
            split.read(start, stop)


def test_source_of_a_document_is_where_it_came_from(tiny_dataset: Path) -> None:
    split = open_dataset(tiny_dataset).split("train")
    sources = list(find_sources(split, range(split.num_documents)).values())
    assert [s.row for s in sources] == sorted(s.row for s in sources)
    assert all(s.file == "tiny.jsonl" and s.id == f"doc-{s.row}" and len(s.hash) == 32 for s in sources)


def test_hash_does_not_depend_on_where_the_source_lies(tiny_dataset: Path) -> None:
    manifest = open_dataset(tiny_dataset).manifest
    moved = manifest.model_copy(update={"recipe": {"source": {"path": "elsewhere"}}, "created_by": "another"})
    assert moved.hash == manifest.hash
    assert manifest.model_copy(update={"dtype": "u4"}).hash != manifest.hash


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def edit(path: Path, change: Callable[[dict], None]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda f: cut(f / "train/00001.tok"),
            r"train/00001 is refused: 00001\.tok has \d+ bytes, but the manifest says",
        ),
        (lambda f: cut(f / "train/00000.idx.npy"), r"train/00000 is refused: 00000\.idx\.npy has"),
        (lambda f: (f / "validation/00002.src.parquet").unlink(), r"validation/00002 is refused: .* is missing"),
        (lambda f: (f / "manifest.json").unlink(), "is not a prepared dataset"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), "has format version None"),
        (lambda f: reseal(f, lambda m: m.update(format_version=9)), "has format version 9"),
        (lambda f: reseal(f, lambda m: m.pop("dtype")), r"manifest\.json is damaged"),
        (
            lambda f: reseal(f, lambda m: m["splits"]["train"][1].update(max_id=300)),
            "train/00001 is refused: its largest id 300 is outside the vocabulary of 300",
        ),
        (
            lambda f: reseal(f, lambda m: m["splits"]["train"][1].update(tokens=5)),
            "not 5 ids of u2",
        ),
        (
            lambda f: reseal(f, lambda m: m["splits"]["train"][1].update(documents=5)),
            r"contains uint64\[\d+\], not uint64\[5\]",
        ),
        (lambda f: edit(f / "tokenizer/tokenizer_config.json", lambda c: c.update(bos_token="a")), "is not the one"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(copy: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(copy)
    with pytest.raises(DatasetError, match=reason):
        open_dataset(copy)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="packtrain prepare RECIPE --out"):
        open_dataset(tmp_path / "none")


def test_an_unfinished_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    with pytest.raises(DatasetError, match="was not finished"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("bos", "eos", "boundary"), [(True, True, 7), (True, False, 5), (False, True, 7), (False, False, 5)]
)
def test_boundary(bos: bool, eos: bool, boundary: int) -> None:
    info = TokenizerInfo(hash="", vocab_size=9, bos_id=5, eos_id=7, adds_bos=bos, adds_eos=eos, kind="byte-level")
    assert boundary_id(info) == boundary


def test_boundary_without_control_tokens() -> None:
    info = TokenizerInfo(hash="", vocab_size=9, bos_id=None, eos_id=None, adds_bos=False, adds_eos=False, kind="other")
    assert boundary_id(info) == 0


def test_width_is_chosen_from_the_vocabulary() -> None:
    assert (id_dtype(65_536), id_dtype(65_537)) == ("u2", "u4")
