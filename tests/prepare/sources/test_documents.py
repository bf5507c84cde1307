"""Whether every kind of source gives the documents that its files contain, however they are cut."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tests.corpora import recipe, sentences, write_jsonl

from packtrain.config.recipe import KIND_SETTINGS, Recipe
from packtrain.errors import SourceError
from packtrain.prepare.sources.documents import SOURCE_KINDS, plan_slices, read_rows
from packtrain.prepare.sources.slices import Row, Slicing
from packtrain.storage.store import LocalStore


def slicing_of(made: Recipe, workspace: Path) -> Slicing:
    return plan_slices(made, LocalStore(workspace))


def rows_of(made: Recipe, workspace: Path) -> tuple[Slicing, list[Row]]:
    slicing = slicing_of(made, workspace)
    return slicing, [row for piece in slicing.slices for row in read_rows(piece, made.source, want_ids=True)]


def texts(rows: list[Row]) -> list[str | None]:
    return [row.text for row in rows]


def write_parquet(path: Path, columns: dict[str, Any], group: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("slice_documents", [1, 6, 1000])
def test_jsonl(tmp_path: Path, ending: str, slice_documents: int) -> None:
    wanted = sentences(20)
    plain = write_jsonl(tmp_path / "plain.jsonl", wanted).read_bytes()
    path = tmp_path / f"a.jsonl{ending}"
    # Two members or frames, as `cat a.gz b.gz` makes.
    half = len(plain) // 2
    pack = {"": lambda b: b, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    path.write_bytes(pack(plain[:half]) + pack(plain[half:]))
    made = recipe("jsonl", path, source__id_column="id", prepare__slice_documents=slice_documents)
    slicing, rows = rows_of(made, tmp_path)
    assert texts(rows) == wanted
    assert [row.id for row in rows] == [f"doc-{i}" for i in range(20)]
    assert [row.row for row in rows] == list(range(20))
    assert all(piece.rows <= slice_documents for piece in slicing.slices)


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)])
def test_a_compressed_file_is_cut_by_documents_alone(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    plain = write_jsonl(tmp_path / "plain.jsonl", [f"{n} " + "word " * 200 for n in range(2_500)])
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(plain.read_bytes()))
    assert len(slicing_of(recipe("jsonl", plain), tmp_path).slices) > 1
    assert len(slicing_of(recipe("jsonl", path), tmp_path).slices) == 1
    limited = slicing_of(recipe("jsonl", path, prepare__slice_documents=1_000), tmp_path)
    assert [piece.rows for piece in limited.slices] == [1_000, 1_000, 500]


def test_broken_lines_are_rows_with_a_problem_and_blank_ones_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "first"}\n\n{"text": "cut\n{"text": null}\n{"other": 1}\n[1]\n{"text": "\xff"}\n'
        b'{"text": "\\ud800"}\n{"text": "last"}'
    )
    _, rows = rows_of(recipe("jsonl", path), tmp_path)
    problems = [row.problem for row in rows]
    assert problems == [None, "broken_row", "no_text", "no_text", "broken_row", "not_utf8", "not_utf8", None]
    assert [row.text for row in rows if row.text] == ["first", "last"]
    assert "its keys are other" in rows[3].detail


def test_deeply_nested_json_is_a_broken_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("[" * 200_000 + "\n")
    _, rows = rows_of(recipe("jsonl", path), tmp_path)
    assert [row.problem for row in rows] == ["broken_row"]


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_parquet_reads_every_kind_of_text_column(tmp_path: Path, kind: str) -> None:
    wanted: list[str | None] = [*sentences(30), None]
    column = pa.array(wanted)
    if kind == "dictionary":
        column = column.dictionary_encode()
    elif kind != "string":
        column = column.cast(getattr(pa, kind)())
    path = write_parquet(tmp_path / "a.parquet", {"score": list(range(31)), "text": column, "id": list(range(31))})
    slicing, rows = rows_of(recipe("parquet", path, source__id_column="id", prepare__slice_documents=10), tmp_path)
    assert texts(rows) == wanted
    assert [row.problem for row in rows[-2:]] == [None, "no_text"]
    assert [row.id for row in rows] == [str(i) for i in range(31)]
    assert all(piece.rows <= 10 for piece in slicing.slices)


def test_parquet_row_groups_are_cut_only_where_they_exceed_a_slice(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": sentences(50)}, group=20)
    whole = slicing_of(recipe("parquet", path, prepare__slice_documents=45), tmp_path)
    assert [piece.rows for piece in whole.slices] == [40, 10]
    cut = slicing_of(recipe("parquet", path, prepare__slice_documents=8), tmp_path)
    assert [piece.rows for piece in cut.slices] == [8, 8, 4, 8, 8, 4, 8, 2]
    assert texts(rows_of(recipe("parquet", path, prepare__slice_documents=8), tmp_path)[1]) == sentences(50)


def test_parquet_that_is_not_utf8_is_counted(tmp_path: Path) -> None:
    data = pa.array([b"good", b"\xff\xfe"], pa.binary())
    for column in (data, data.view(pa.string())):
        path = write_parquet(tmp_path / "a.parquet", {"text": column, "id": column})
        _, rows = rows_of(recipe("parquet", path, source__id_column="id"), tmp_path)
        assert [row.problem for row in rows] == [None, "not_utf8"]
        assert [row.id for row in rows] == ["good", "\ufffd\ufffd"]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
def test_csv_with_quotes_and_line_ends_in_fields(tmp_path: Path, ending: str) -> None:
    wanted = ['plain, with "quotes"', "two\nlines", "x" * 200_000, "überall"] * 5
    path = tmp_path / f"a{ending}"
    opener = gzip.open if ending.endswith(".gz") else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if ending == ".tsv" else ",")
        writer.writerow(["id", "text"])
        writer.writerows((i, t) for i, t in enumerate(wanted))
    made = recipe("csv", path, source__id_column="id", prepare__slice_documents=3)
    slicing, rows = rows_of(made, tmp_path)
    assert texts(rows) == wanted
    assert [row.id for row in rows] == [str(i) for i in range(20)]
    assert len(slicing.slices) == 7


def test_csv_rows_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,n\r\ngood,1\r\n\r\nshort\r\n"bad"quote,2\r\n\xff,3\r\nlast,4\r\n')
    _, rows = rows_of(recipe("csv", path), tmp_path)
    assert [(row.text, row.problem) for row in rows] == [
        ("good", None),
        (None, "broken_row"),
        (None, "broken_row"),
        (None, "not_utf8"),
        ("last", None),
    ]


def test_csv_with_a_quote_that_never_closes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\ngood\n"open\nand\nso\non\n')
    with pytest.raises(SourceError, match="opens at line 3 is never closed"):
        slicing_of(recipe("csv", path), tmp_path)


def test_text_files_are_a_document_each(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("second")
    (folder / "deep" / "c.md").write_text("third\nwith lines\n")
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"first"))
    (folder / ".hidden.txt").write_text("no")
    (folder / "image.png").write_bytes(b"\x89PNG")
    _, rows = rows_of(recipe("text", folder), tmp_path)
    assert [(row.file, row.text) for row in rows] == [
        ("a.txt.gz", "first"),
        ("b.txt", "second"),
        ("deep/c.md", "third\nwith lines\n"),
    ]


@pytest.mark.parametrize("slice_documents", [2, 100])
def test_text_files_are_split_at_a_separator(tmp_path: Path, slice_documents: int) -> None:
    wanted = sentences(9)
    path = tmp_path / "a.txt"
    path.write_text("\n----\n".join(wanted))
    made = recipe("text", path, source__separator="\n----\n", prepare__slice_documents=slice_documents)
    assert texts(rows_of(made, tmp_path)[1]) == wanted


def test_a_separator_across_a_read_border_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * ((1 << 20) - 2) + b"<sep>" + b"b" * 10)
    _, rows = rows_of(recipe("text", path, source__separator="<sep>"), tmp_path)
    assert [len(row.text or "") for row in rows] == [(1 << 20) - 2, 10]


def test_glob_and_url_and_file(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, [name])
    assert texts(rows_of(recipe("jsonl", tmp_path / "*.jsonl"), tmp_path)[1]) == ["a.jsonl", "b.jsonl"]
    made = recipe("jsonl", source__path=f"file://{tmp_path}/b.jsonl")
    assert texts(rows_of(made, tmp_path)[1]) == ["b.jsonl"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "text"])
def test_a_remote_file_system(tmp_path: Path, kind: str) -> None:
    memory = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}"
    wanted = sentences(12)
    if kind == "jsonl":
        memory.pipe(
            f"{root}/x/a.jsonl.gz", gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in wanted).encode())
        )
    elif kind == "csv":
        memory.pipe(f"{root}/x/a.csv", ("text\n" + "".join(f'"{t}"\n' for t in wanted)).encode())
    elif kind == "parquet":
        memory.pipe(f"{root}/x/a.parquet", write_parquet(tmp_path / "a.parquet", {"text": wanted}).read_bytes())
    else:
        memory.pipe(f"{root}/x/a.txt", "|".join(wanted).encode())
    settings = {"source__separator": "|"} if kind == "text" else {}
    made = recipe(kind, prepare__slice_documents=5, source__path=f"memory:/{root}/x", **settings)
    assert texts(rows_of(made, tmp_path)[1]) == wanted
    memory.rm(root, recursive=True)


def test_max_documents_takes_the_first(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, sentences(10))
    made = recipe("jsonl", tmp_path / "*.jsonl", source__max_documents=13, prepare__slice_documents=4)
    slicing, rows = rows_of(made, tmp_path)
    assert texts(rows) == sentences(10) + sentences(3)
    assert slicing.rows == 13


def test_a_small_source_is_cut_for_several_workers(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["x" * 100_000 for _ in range(60)])
    slicing = slicing_of(recipe("jsonl", path), tmp_path)
    assert len(slicing.slices) == 6
    assert sum(piece.rows for piece in slicing.slices) == 60


def test_a_plan_is_a_function_of_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        write_jsonl(folder / "a.jsonl", sentences(10))
    first = slicing_of(recipe("jsonl", one), tmp_path)
    assert first.fingerprint == slicing_of(recipe("jsonl", other), tmp_path).fingerprint
    write_jsonl(other / "a.jsonl", [*sentences(9), "another"])
    assert first.fingerprint != slicing_of(recipe("jsonl", other), tmp_path).fingerprint


def test_stdlib_is_real_text_of_the_running_python(tmp_path: Path) -> None:
    slicing, rows = rows_of(recipe("stdlib"), tmp_path)
    assert slicing.revision is not None and slicing.revision.startswith("python 3.")
    by_file = {row.file: row.text for row in rows}
    assert "class JSONDecoder" in (by_file["json/decoder.py"] or "")
    assert sum(len(t or "") for t in by_file.values()) > 5_000_000
    assert not any(name.startswith(("test/", "site-packages/")) for name in by_file)
    assert len(slicing.slices) > 4


def make_recipe(folder: Path, body: str, **settings: Any) -> Recipe:
    path = folder / "mine.py"
    path.write_text(body)
    return recipe("function", source__function=f"{path}:documents", **settings)


def test_strings_and_records(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("NAME = 'third'\n")
    body = (
        "import neighbour\n"
        "def documents():\n"
        "    yield 'first'\n"
        "    yield {'text': 'second', 'id': 7}\n"
        "    yield {'text': neighbour.NAME}\n"
        "    yield {'text': None}\n"
        "    yield '\\ud800'\n"
    )
    _, rows = rows_of(make_recipe(tmp_path, body), tmp_path)
    assert [(row.text, row.id, row.problem) for row in rows] == [
        ("first", None, None),
        ("second", "7", None),
        ("third", None, None),
        (None, None, "no_text"),
        (None, None, "not_utf8"),
    ]


def test_it_runs_once(tmp_path: Path) -> None:
    log = tmp_path / "runs"
    body = (
        "def documents():\n"
        f"    with open({str(log)!r}, 'a') as file:\n"
        "        file.write('x')\n"
        "    yield from map(str, range(3000))\n"
    )
    made = make_recipe(tmp_path, body, prepare__slice_documents=500)
    for _ in range(2):
        slicing, rows = rows_of(made, tmp_path)
    assert log.read_text() == "x"
    assert texts(rows) == [str(i) for i in range(3000)]
    assert len(slicing.slices) > 4


def test_an_endless_one_with_max_documents(tmp_path: Path) -> None:
    body = "import itertools\ndef documents():\n    yield from map(str, itertools.count())\n"
    _, rows = rows_of(make_recipe(tmp_path, body, source__max_documents=1500), tmp_path)
    assert texts(rows) == [str(i) for i in range(1500)]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "def documents():\n    yield 'a'\n    1 / 0\n",
            "raised ZeroDivisionError: division by zero .after 1 documents",
        ),
        ("def documents():\n    yield 3\n", "yielded int as document 0"),
        ("def others():\n    yield 'a'\n", "has no function 'documents'; its functions are others"),
        ("def documents(:\n", "raised SyntaxError"),
    ],
)
def test_what_goes_wrong_is_told(tmp_path: Path, body: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        slicing_of(make_recipe(tmp_path, body), tmp_path)


@pytest.mark.parametrize("target", ["mine.py", "mine:documents", "no/such.py:documents"])
def test_a_wrong_target_is_told(tmp_path: Path, target: str) -> None:
    with pytest.raises(SourceError, match=r"source\.function="):
        slicing_of(recipe("function", source__function=target), tmp_path)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        slicing_of(recipe("jsonl", tmp_path / "none.jsonl"), tmp_path)
    with pytest.raises(SourceError, match="matches no file"):
        slicing_of(recipe("jsonl", tmp_path / "*.jsonl"), tmp_path)


def test_folder_without_such_files_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=r"no file ending in .*\.jsonl.*it has notes\.txt"):
        slicing_of(recipe("jsonl", tmp_path), tmp_path)


def test_empty_source(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(SourceError, match="the source is empty"):
        slicing_of(recipe("jsonl", tmp_path / "a.jsonl"), tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_missing_column_names_those_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        write_parquet(path, {"content": ["a"], "url": ["b"]})
    else:
        path.write_text("content,url\na,b\n")
    with pytest.raises(SourceError, match=r"no column 'text'.*content, url: write source\.text_column="):
        slicing_of(recipe(kind, path), tmp_path)
    with pytest.raises(SourceError, match=r"no column 'key' \(source\.id_column\)"):
        slicing_of(recipe(kind, path, source__text_column="content", source__id_column="key"), tmp_path)


def test_column_that_is_no_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": [1, 2]})
    with pytest.raises(SourceError, match="holds int64, not text"):
        slicing_of(recipe("parquet", path), tmp_path)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_cut_short_while_compressed(tmp_path: Path, ending: str) -> None:
    data = write_jsonl(tmp_path / "plain.jsonl", sentences(500)).read_bytes()
    packed = gzip.compress(data) if ending == ".gz" else zstandard.ZstdCompressor().compress(data)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(SourceError, match="cut short or damaged"):
        slicing_of(recipe("jsonl", path), tmp_path)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_not_compressed_at_all(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_text('{"text": "plain"}\n')
    with pytest.raises(SourceError, match="cut short or damaged"):
        slicing_of(recipe("jsonl", path), tmp_path)


def test_parquet_cut_short(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": sentences(300)})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="cut short or not parquet"):
        slicing_of(recipe("parquet", path), tmp_path)


def test_parquet_damaged_inside(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": sentences(300)}, group=300)
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)
    made = recipe("parquet", path)
    slicing = slicing_of(made, tmp_path)
    with pytest.raises(SourceError, match="damaged"):
        list(read_rows(slicing.slices[0], made.source))


def test_unknown_protocol(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        slicing_of(recipe("jsonl", source__path="nosuch://bucket/a.jsonl"), tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "text", "parquet"])
@pytest.mark.parametrize("change", ["fewer", "more", "others", "gone"])
def test_a_file_that_changes_after_planning(tmp_path: Path, kind: str, change: str) -> None:
    path = tmp_path / f"a.{kind}"

    def write(texts: list[str]) -> None:
        if kind == "parquet":
            pq.write_table(pa.table({"text": texts}), path)
        elif kind == "jsonl.gz":
            path.write_bytes(gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode()))
        elif kind == "jsonl":
            write_jsonl(path, texts)
        else:
            path.write_text("text\n" + "\n".join(f'"{t}"' for t in texts))

    write(sentences(20))
    made = recipe(kind.removesuffix(".gz"), path)
    slicing = slicing_of(made, tmp_path)
    others = [text.replace("Document", "document") for text in sentences(20)]
    if change == "gone":
        path.unlink()
    else:
        write({"fewer": sentences(5), "more": [*sentences(20), "one more"], "others": others}[change])
    reading = [read_rows(piece, made.source) for piece in slicing.slices]
    if change == "more" and kind.startswith(("jsonl", "csv")):
        # What was planned for is still there; the rest is for another run.
        assert sum(len(list(rows)) for rows in reading) == 20
        return
    with pytest.raises(SourceError, match=r"changed while it was prepared|shorter than before|is gone"):
        for rows in reading:
            list(rows)


def test_a_recipe_may_name_the_kinds_of_the_table_and_no_others() -> None:
    assert set(KIND_SETTINGS) == set(SOURCE_KINDS)
