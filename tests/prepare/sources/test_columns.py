"""Whether a filter passes the same rows for every kind of source, and wrong columns are refused early."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.corpora import files_of, recipe, sentences, texts_of

from packtrain.data.format.manifest import read_manifest
from packtrain.errors import SourceError
from packtrain.prepare.run import prepare
from packtrain.prepare.verify import verify

ROWS = [
    {"text": text, "score": None if i % 7 == 0 else i % 5, "lang": "en" if i % 2 else "de", "id": f"{i}"}
    for i, text in enumerate(sentences(60))
]
FILTER = "score >= 3 and lang == 'en'"
WANTED = [r["text"] for r in ROWS if r["score"] is not None and r["score"] >= 3 and r["lang"] == "en"]


def write(kind: str, folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    folder.mkdir(exist_ok=True)
    if kind == "parquet":
        table = pa.Table.from_pylist(rows)
        table = table.set_column(table.schema.get_field_index("lang"), "lang", table["lang"].dictionary_encode())
        pq.write_table(table, folder / "a.parquet", row_group_size=16)
    elif kind == "jsonl":
        lines = ({k: v for k, v in row.items() if v is not None} for row in rows)
        (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        with (folder / "a.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "lang", "score", "text"])
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_filter_lets_the_same_rows_through_in_every_kind(kind: str, tmp_path: Path) -> None:
    made = recipe(kind, write(kind, tmp_path / "in"), source__filter=FILTER, prepare__slice_documents=20)
    prepare(made, tmp_path / "out")
    assert sorted(texts_of(tmp_path / "out")) == sorted(WANTED)
    documents = read_manifest(tmp_path / "out").ledger["documents"]
    assert (documents["in"], documents["dropped"]) == (60, {"filter": 60 - len(WANTED)})
    assert verify(tmp_path / "out", rebuild=2, seed=0).rebuilt


def test_a_filtered_hub_dataset_reads_no_other_column(tmp_path: Path) -> None:
    source = write("parquet", tmp_path / "in")
    # A page of an unread column may be rubbish, and nobody sees it.
    path = source / "a.parquet"
    unread = pa.table({**{name: pq.read_table(path)[name] for name in ("text", "score", "lang")}, "x": ["zzzz"] * 60})
    pq.write_table(unread, path, compression=None, use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"zzzz", b"\xff\xff\xff\xff"))
    made = recipe("hf", source, source__filter=FILTER)
    prepare(made, tmp_path / "out")
    assert sorted(texts_of(tmp_path / "out")) == sorted(WANTED)


def test_keys_of_a_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"def documents():\n    yield from {ROWS!r}\n    yield 'a text without keys'\n")
    made = recipe("function", None, source__function=f"{tmp_path}/mine.py:documents", source__filter=FILTER)
    prepare(made, tmp_path / "out")
    assert sorted(texts_of(tmp_path / "out")) == sorted(WANTED)
    assert read_manifest(tmp_path / "out").ledger["documents"]["dropped"] == {"filter": 61 - len(WANTED)}


@pytest.mark.slow
def test_the_same_bytes_with_any_workers(tmp_path: Path) -> None:
    source = write("parquet", tmp_path / "in")
    for workers in (1, 2):
        made = recipe("parquet", source, source__filter=FILTER, prepare__workers=workers, prepare__slice_documents=8)
        prepare(made, tmp_path / f"out{workers}")
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out2")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("scoer >= 3", r"no column 'scoer' \(source.filter\).*did you mean 'score'\?"),
        ("lang >= 3", r"compares (it )?with (a number|one)|with a number"),
    ],
    ids=["unknown", "of another kind"],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "function"])
def test_a_wrong_column_is_refused_before_any_work(kind: str, expression: str, message: str, tmp_path: Path) -> None:
    settings = {"source__filter": expression}
    if kind == "function":
        (tmp_path / "mine.py").write_text(f"def documents():\n    yield from {ROWS!r}\n")
        made = recipe(kind, None, source__function=f"{tmp_path}/mine.py:documents", **settings)
    else:
        made = recipe(kind, write(kind, tmp_path / "in"), **settings)
    with pytest.raises(SourceError, match=message):
        prepare(made, tmp_path / "out")
    assert not list(tmp_path.glob("out/.work/*/scan/*"))


def test_a_single_value_of_another_kind_is_a_broken_row(tmp_path: Path) -> None:
    rows = [*ROWS[1:], {**ROWS[0], "score": "many"}]
    made = recipe(
        "jsonl", write("jsonl", tmp_path / "in", rows), source__filter="score >= 3", source__max_bad_fraction=0.1
    )
    prepare(made, tmp_path / "out")
    ledger = read_manifest(tmp_path / "out").ledger
    assert ledger["documents"]["dropped"]["broken_row"] == 1
    assert "'score' holds a text" in ledger["samples"]["broken_row"][0]


def test_a_rare_key_is_found_and_may_be_absent_from_a_file(tmp_path: Path) -> None:
    folder = write("jsonl", tmp_path / "in")
    rows = [{"text": f"another text {i}", "rare": 1} if i == 999 else {"text": f"one more {i}"} for i in range(1000)]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(recipe("jsonl", folder, source__filter="rare is null"), tmp_path / "out")
    assert read_manifest(tmp_path / "out").ledger["documents"]["dropped"] == {"filter": 1}


def test_a_filter_means_nothing_to_plain_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source.filter has no effect with source.kind=text"):
        recipe("text", tmp_path, source__filter="a == 1")
