"""Whether every model is measured on the same documents and bytes, and text that cannot be measured is refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from packtrain.data.format.shards import Dataset
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import SourceError
from packtrain.evaluate.texts import choose_documents, encode_documents, is_same_tokenizer, read_text
from packtrain.export.huggingface import tokenizer_config, tokenizer_json
from packtrain.runs.layout import write_json
from tests.evaluate.conftest import make_dataset, texts


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    made = make_dataset(tmp_path_factory.mktemp("other"), "tokenizer.vocab_size=300", "tokenizer.eos=true")
    return load_tokenizer(made.tokenizer_folder)


def test_another_tokenizer_reads_the_same_bytes(dataset: Dataset, tokenizer: Tokenizer, other: Tokenizer) -> None:
    own = choose_documents(dataset, tokenizer, tokenizer, add_bos=True, tokens=None)
    again = choose_documents(dataset, tokenizer, other, add_bos=True, tokens=None)
    assert own.texts == again.texts
    assert own.num_bytes == again.num_bytes == dataset.split("validation").utf8_bytes
    assert [d.num_bytes for d in own.documents] == [d.num_bytes for d in again.documents] == [*map(len, own.texts)]
    assert own.num_tokens < again.num_tokens
    assert "encoded again" in again.coverage and "encoded again" not in own.coverage
    for document, text in zip(again.documents, again.texts, strict=True):
        assert other.decode(document.ids.tolist()).encode() == text
        assert document.start == other.bos_id
    # Each document as it is stored, except that BOS is what it starts from.
    split = dataset.split("validation")
    stored = np.concatenate([[d.start, *d.ids.tolist()] for d in own.documents])
    assert stored.tolist() == split.read(0, split.num_tokens).tolist()


def test_which_documents_are_chosen_depends_on_the_dataset_alone(
    dataset: Dataset, tokenizer: Tokenizer, other: Tokenizer
) -> None:
    few = choose_documents(dataset, tokenizer, tokenizer, add_bos=True, tokens=500)
    assert choose_documents(dataset, tokenizer, other, add_bos=True, tokens=500).texts == few.texts
    assert 0 < few.num_tokens <= 500
    assert set(few.texts) < {text.encode() for text in texts()}
    assert len(choose_documents(dataset, tokenizer, tokenizer, add_bos=True, tokens=1).documents) == 1


def test_an_exported_tokenizer_is_the_same(tokenizer: Tokenizer, other: Tokenizer, tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", tokenizer_json(tokenizer, True))
    write_json(tmp_path / "tokenizer_config.json", tokenizer_config(tokenizer, True, 32))
    exported = load_tokenizer(tmp_path)
    assert exported.hash != tokenizer.hash
    assert is_same_tokenizer(exported, tokenizer)
    assert not is_same_tokenizer(other, tokenizer)


def test_a_text_without_bos_begins_after_the_end_of_another(tokenizer: Tokenizer) -> None:
    [document] = encode_documents(tokenizer, ["été".encode()], add_bos=False, end=None)
    assert (document.start, document.num_bytes) == (tokenizer.eos_id, 5)
    assert tokenizer.decode(document.ids.tolist()) == "été"


def test_a_file_is_one_document_or_many(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text("one\n---\ntwo\n---\n \n")
    assert read_text(plain, separator=None, column="text") == [b"one\n---\ntwo\n---\n \n"]
    assert read_text(plain, separator="---\n", column="text") == [b"one\n", b"two\n"]
    lines = tmp_path / "b.jsonl.gz"
    with gzip.open(lines, "wt") as file:
        file.write(json.dumps({"text": "x\u2028y"}) + "\n\n" + json.dumps({"text": "z"}) + "\n")
    assert read_text(lines, separator=None, column="text") == ["x\u2028y".encode(), b"z"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "zwölf\nfünf".encode("latin-1"), "not UTF-8: byte 2, in line 1"),
        ("a.txt", b"", "has no text"),
        ("a.txt", b" \n\t", "has no text"),
        ("a.txt", "x".encode("utf-16"), "UTF-16"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2, has no text in 'text' (it has txt)".replace("(", r"\(")),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2, is not JSON"),
        ("a.jsonl", b"[1]\n", "it is no object"),
        ("a.txt.gz", b"\x1f\x8b\x08cut", "cut short or damaged"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=says.replace(")", r"\)") if "\\(" in says else says):
        read_text(tmp_path / name, separator=None, column="text")


def test_no_file_and_two_ways_to_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a file"):
        read_text(tmp_path, separator=None, column="text")
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(SourceError, match="leave out --separator"):
        read_text(tmp_path / "a.jsonl", separator="x", column="text")
