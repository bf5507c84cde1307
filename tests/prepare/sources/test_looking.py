"""What a path is found to be, and the sentence with the choices where that is unclear."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.command_line import packtrain
from tests.corpora import sentences, write_jsonl

from packtrain.errors import SourceError
from packtrain.prepare.sources.looking import look
from packtrain.prepare.sources.separators import count_documents
from packtrain.prepare.sources.slices import SourceFile

TEXTS = sentences(40)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: str | bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_parquet(name: str, **columns: list[object]) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), name)


JSONL = '{"id": "1", "text": "one"}\n{"id": "2", "text": "two"}\n'


@pytest.mark.usefixtures("here")
def test_a_kind_is_found_by_endings_first_bytes_and_lines() -> None:
    write("a.txt", JSONL)
    write("b.gz", gzip.compress(b'[{"Content": "x", "n": 1}]'))
    write_parquet("c.data", story=["a", "b"], n=[1, 2])
    write("d.csv", "id;text\n1;one\n")
    write("e/README.md", "# Notes")
    write("e/x.csv", "n,body\n1,one\n2,two\n")
    write("f.py", "def documents():\n    yield 'x'\n")
    write("g/a.c", "int main;")
    write("g/b.c", "int other;")
    write("h/tokenizer.json", "{}")
    write("h/a.jsonl", JSONL)
    write("i.jsonl", '{"doc": {"text": "one"}, "n": 3}\n')
    write("j.txt", "one<|endoftext|>two<|endoftext|>")
    found = {
        path: look(path) for path in ["a.txt", "b.gz", "c.data", "d.csv", "e", "f.py", "g", "h", "i.jsonl", "j.txt"]
    }
    assert {path: (each.recipe, each.settings[1:] or each.settings) for path, each in found.items()} == {
        "a.txt": ("jsonl", ("source.path=a.txt",)),
        "b.gz": ("jsonl", ("source.text_column=Content",)),
        "c.data": ("parquet", ("source.text_column=story",)),
        "d.csv": ("csv", ("source.delimiter=;",)),
        "e": ("csv", ("source.text_column=body",)),
        "f.py": ("python", ("source.function=f.py:documents",)),
        "g": ("text-folder", ("source.path=g/**/*.c*",)),
        "h": ("jsonl", ("source.path=h/**/*.jsonl*",)),
        "i.jsonl": ("jsonl", ("source.text_column=doc.text",)),
        "j.txt": ("text-folder", ("source.separator=<|endoftext|>",)),
    }


@pytest.mark.usefixtures("here")
def test_a_copy_of_a_hub_repository_is_read_by_its_layout() -> None:
    write("hub/README.md", "---\nlicense: mit\n---\n")
    write_parquet("hub/data/train-00000-of-00001.parquet", text=TEXTS)
    write_parquet("hub/data/test-00000-of-00001.parquet", text=["held out"])
    assert look("hub").settings == ("source.kind=hf", "source.path=hub")
    done = packtrain("prepare", "hub", "tokenizer.vocab_size=300", "prepare.workers=1", "--out", "d", "--json")
    assert done.documents["in"] == len(TEXTS)
    assert "hub is a copy of a hub repository" in done.err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("files", "path", "sentence"),
    [
        ({"m/a.jsonl": JSONL, "m/b.csv": "text\nx\n"}, "m", "choose one: `packtrain prepare jsonl source.path=m --out DATASET` or"),
        ({"a.jsonl": '{"a": "x", "b": "y"}\n'}, "a.jsonl", "its columns with text are a, b; name the one to read"),
        ({"a.jsonl": '{"a": 1}\n'}, "a.jsonl", "it has no column with text"),
        ({"a.py": "def texts(): ...\n"}, "a.py", "(its functions are texts); write `packtrain prepare python source.function=a.py:"),
        ({"a.py": "def (:\n"}, "a.py", "is not Python"),
        ({"x/a.bin": "abc"}, "x", "has token files (a.bin); write `packtrain import x --format FORMAT"),
        ({"x/a.c": "int;", "x/b.h": "int;"}, "x", "1 with .c, 1 with .h"),
        ({"a.dat": b"\x00\x01\x02"}, "a.dat", "is not text, as it has NUL bytes"),
        ({"x/LICENSE": "mit", "x/README.md": "x"}, "x", "has no text: nothing but LICENSE, README.md"),
        ({"one.txt": "a\n\nb\nc\n"}, "one.txt", "source.separator='\\n\\n' (at blank lines, 2 documents), source.separator='\\n'"),
        ({"a.parquet": "PAR0"}, "a.parquet", "is cut short or not parquet"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_one_sentence_with_the_choices(
    files: dict[str, str | bytes], path: str, sentence: str
) -> None:
    for name, content in files.items():
        write(name, content)
    with pytest.raises(SourceError) as refused:
        look(path)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("here")
def test_documents_are_counted_as_they_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "one\r\n\r\n\r\ntwo<|endoftext|> \n\nthree\n---\n\fé\n\n \n\nend"
    write("a.txt", text)
    expected = {}
    for name in ("\n\n\n", "\n\n", "\f", "<|endoftext|>", "\n---\n", "\n"):
        expected[name] = sum(bool(piece.strip()) for piece in text.replace("\r\n", "\n").split(name))
    for chunk in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr("packtrain.prepare.sources.separators.CHUNK", chunk)
        counted = count_documents(SourceFile("a.txt", "a.txt", len(text)))
        assert counted == {name: count for name, count in expected.items() if count > 1}, chunk


def test_a_path_gives_the_dataset_of_its_recipe(here: Path) -> None:
    write_jsonl(here / "my texts.jsonl", TEXTS)
    common = ("tokenizer.vocab_size=300", "prepare.workers=1", "--json")
    found = packtrain("prepare", "my texts.jsonl", *common, "--out", "a")
    named = packtrain("prepare", "jsonl", "source.path=my texts.jsonl", *common, "--out", "b")
    assert json.loads(found.out)["hash"] == json.loads(named.out)["hash"]
    assert "read as by: packtrain prepare jsonl 'source.path=my texts.jsonl'" in " ".join(found.err.split())
    assert sum(json.loads(found.out)["encoded"].values()) >= len(TEXTS)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("recipe", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl.gz"])
def test_a_file_given_to_another_recipe_is_named(recipe: str, name: str) -> None:
    if recipe in name:
        return
    write_parquet("a.parquet", text=TEXTS)
    write("a.csv", "text\nx\n")
    write("a.jsonl.gz", gzip.compress(JSONL.encode()))
    refused = packtrain("prepare", recipe, f"source.path={name}", "--out", "d")
    assert refused.code == 2
    assert f"write `packtrain prepare {name} --out DATASET`" in refused.sentence


def test_a_path_that_is_not_there_is_told_from_a_recipe() -> None:
    assert "source.kind=hf source.repo=owner/name" in packtrain("prepare", "owner/name", "--out", "d").sentence
    assert "check the path" in packtrain("prepare", "some/where/else", "--out", "d").sentence
    assert "did you mean jsonl?" in packtrain("prepare", "jsonk", "--out", "d").sentence


@pytest.mark.usefixtures("here")
def test_one_large_document_is_offered_its_separators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packtrain.prepare.sources.looking._LARGE_BYTES", 100)
    write("a.txt", "\n\n".join(TEXTS))
    done = packtrain("prepare", "text-folder", "source.path=a.txt", "--dry-run", "--out", "d")
    assert f"source.separator='\\n\\n' (at blank lines, {len(TEXTS)} documents)" in done.err
