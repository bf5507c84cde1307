"""Comparing two datasets gives what a comparison by plain dictionaries gives."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
from tests.corpora import recipe, reseal, sentences, write_jsonl
from typer.testing import CliRunner

from packtrain.cli.diff import diff
from packtrain.data.diff import compare
from packtrain.data.format.manifest import SPLITS
from packtrain.data.format.shards import Dataset, open_dataset
from packtrain.errors import DatasetError
from packtrain.prepare.run import prepare
from packtrain.storage import buckets


def made(folder: Path, name: str, texts: list[str], **settings: Any) -> Dataset:
    path = write_jsonl(folder / f"{name}.jsonl", texts)
    prepare(recipe("jsonl", path, source__id_column="id", **settings), folder / name)
    return open_dataset(folder / name)


def naive(dataset: Dataset) -> dict[bytes, Counter[tuple[str, tuple[int, ...]]]]:
    """Sides and ids of every document, by content hash."""
    found: dict[bytes, Counter[tuple[str, tuple[int, ...]]]] = {}
    for name in SPLITS:
        split = dataset.split(name)
        hashes = [
            h
            for shard in split.shards
            for h in pq.read_table(split.folder / f"{shard.name}.src.parquet")["hash"].to_pylist()
        ]
        start = 0
        for content, end in zip(hashes, split.document_ends.tolist(), strict=True):
            found.setdefault(content, Counter())[name, tuple(split.read(start, end).tolist())] += 1
            start = end
    return found


@pytest.fixture(scope="module")
def tokenizer(tiny_dataset: Path) -> str:
    return str(tiny_dataset / "tokenizer")


def call(*words: object) -> str:
    app = typer.Typer()
    app.command()(diff)
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_dataset_equals_its_copy(tiny_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "copy")
    told = json.loads(call(tiny_dataset, tmp_path / "copy", "--json"))
    assert told["equal"] and told["settings"] == {} and told["reasons"] == []
    assert told["same"]["documents"] == sum(open_dataset(tiny_dataset).split(name).num_documents for name in SPLITS)
    assert "The same documents with the same ids on the same sides." in call(tiny_dataset, tmp_path / "copy")


@pytest.mark.parametrize("bucket_records", [1 << 21, 20])
def test_documents_that_only_one_has(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, bucket_records: int
) -> None:
    monkeypatch.setattr(buckets, "_BUCKET_RECORDS", bucket_records)
    texts = sentences(100)
    options = {"tokenizer__name": tokenizer, "dedup__exact": False}
    a = made(tmp_path, "a", [*texts[:80], texts[0], texts[1], texts[1]], **options)
    b = made(tmp_path, "b", [*texts[10:], texts[60]], **options)
    result = compare(a, b)
    counts = [Counter({h: sum(ids.values()) for h, ids in naive(d).items()}) for d in (a, b)]
    only = [(counts[0] - counts[1]).total(), (counts[1] - counts[0]).total()]
    assert [result.only_a.documents, result.only_b.documents] == only == [13, 21]
    assert (result.moved.documents, result.retokenized.documents) == (0, 0)
    assert result.same.documents == 70
    assert result.same.tokens[0] + result.only_a.tokens[0] == sum(a.split(name).num_tokens for name in SPLITS)
    assert result.same.tokens[1] + result.only_b.tokens[1] == sum(b.split(name).num_tokens for name in SPLITS)
    assert len(result.only_a.samples) == 5
    place = result.only_b.samples[0]["b"]
    assert place["file"] == "b.jsonl" and place["id"] == f"doc-{place['row']}"
    assert result.reasons == [
        "recipe and tokenizer are the same, so the source files or the version of packtrain differ"
    ]


def test_documents_that_changed_sides(tmp_path: Path, tokenizer: str) -> None:
    texts = sentences(120)
    a = made(tmp_path, "a", texts, tokenizer__name=tokenizer)
    b = made(tmp_path, "b", texts, tokenizer__name=tokenizer, split__salt="another")
    first, second = naive(a), naive(b)
    moved = sum(1 for h in first if next(iter(first[h]))[0] != next(iter(second[h]))[0])
    result = compare(a, b)
    assert result.moved.documents == moved > 0
    assert result.same.documents == 120 - moved
    assert result.only_a.documents == result.only_b.documents == result.retokenized.documents == 0
    assert result.settings["split.salt"] == ("packtrain", "another")
    assert result.reasons == ["split.salt: documents change sides"]
    sample = result.moved.samples[0]
    assert sample["a"]["id"] == sample["b"]["id"]
    assert sample["a"]["document"].split("/")[0] != sample["b"]["document"].split("/")[0]


def test_the_same_text_with_other_ids(tmp_path: Path, tokenizer: str) -> None:
    texts = sentences(60)
    a = made(tmp_path, "a", texts, tokenizer__name=tokenizer)
    b = made(tmp_path, "b", texts, tokenizer__name=tokenizer, tokenizer__bos=False)
    result = compare(a, b)
    assert result.retokenized.documents == 60 and result.same.documents == 0
    assert result.retokenized.tokens[0] - result.retokenized.tokens[1] == 60
    assert result.reasons == ["tokenizer.bos, manifest.tokenizer.adds_bos: the same text gets other ids"]
    c = made(
        tmp_path, "c", [text.upper() if i < 7 else text for i, text in enumerate(texts)], tokenizer__name=tokenizer
    )
    upper = compare(a, c)
    assert (upper.retokenized.documents, upper.same.documents) == (7, 53)
    text = call(a.folder, b.folder)
    assert "in both, with different ids" in text and "tokenizer.bos" in text and "True" in text


def test_only_what_can_have_caused_it_explains_it(tmp_path: Path, tokenizer: str) -> None:
    texts = sentences(50)
    a = made(tmp_path, "a", texts, tokenizer__name=tokenizer)
    b = made(tmp_path, "b", texts, tokenizer__name=tokenizer, dedup__exact=False, clean__min_chars=2)
    result = compare(a, b)
    assert result.is_equal and result.reasons == []
    assert set(result.settings) >= {"dedup.exact", "clean.min_chars"}
    c = made(tmp_path, "c", texts, tokenizer__name=tokenizer, clean__min_chars=120)
    assert compare(a, c).reasons == ["clean.min_chars: documents are cleaned or dropped differently"]


def test_a_recipe_of_an_older_version_has_the_defaults_of_what_it_lacks(tiny_dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    reseal(copy, lambda manifest: manifest["recipe"]["split"].pop("salt"))
    assert compare(open_dataset(tiny_dataset), open_dataset(copy)).settings == {}
    reseal(copy, lambda manifest: manifest["recipe"].update(source={"kind": "tape"}))
    assert compare(open_dataset(tiny_dataset), open_dataset(copy)).settings["source.kind"] == ("jsonl", "tape")


def test_a_width_of_ids_is_no_difference(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(30)
    a = made(tmp_path, "a", texts, tokenizer__name=tokenizer)
    monkeypatch.setattr("packtrain.prepare.steps.encode.id_dtype", lambda _size: "u4")
    monkeypatch.setattr("packtrain.prepare.steps.finished.id_dtype", lambda _size: "u4")
    b = made(tmp_path, "b", texts, tokenizer__name=tokenizer)
    result = compare(a, b)
    assert result.is_equal
    assert result.settings["manifest.dtype"] == ("u2", "u4")


def test_a_file_that_changed_later_is_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    path = copy / "train/00001.tok"
    data = bytearray(path.read_bytes())
    data[4] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"shard train/00001 is refused: the content of 00001\.tok changed"):
        call(tiny_dataset, copy)


def test_a_folder_that_is_no_dataset_is_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a prepared dataset"):
        call(tiny_dataset, tmp_path)
