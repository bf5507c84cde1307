"""Whether parquet files are read as pyarrow reads them: any schema, any layout, damaged ones and bombs included."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.command_line import prepare

from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources import pages
from packtrain.prepare.sources.columnar import read_parquet, scan_parquet
from packtrain.prepare.sources.slices import TOO_LARGE, Limits, Row, SourceFile

MB = 1 << 20


def rows_of(path: Path, rows: int = 1 << 20, **values: Any) -> list[Row]:
    config = SourceConfig(kind="parquet", path=str(path), **values)
    file = SourceFile(path.name, str(path), path.stat().st_size)
    return [row for part in scan_parquet(file, config, Limits(rows, None)).parts for row in read_parquet(part, config)]


def texts(path: Path, **values: Any) -> list[str | None]:
    return [row.text for row in rows_of(path, **values)]


def write(path: Path, columns: dict[str, Any], **layout: Any) -> Path:
    pq.write_table(pa.table(columns), path, **layout)
    return path


VALUES = st.lists(st.none() | st.text(max_size=6) | st.text(min_size=300, max_size=400), max_size=30)
KINDS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "string": lambda a: a,
    "large_string": lambda a: a.cast(pa.large_string()),
    "string_view": lambda a: a.cast(pa.string_view()),
    "binary": lambda a: a.cast(pa.binary()),
    "dictionary": lambda a: a.dictionary_encode(),
    "struct": lambda a: pa.StructArray.from_arrays([a, pa.array(range(len(a)))], ["inner", "n"]),
    "struct of struct": lambda a: pa.StructArray.from_arrays([pa.StructArray.from_arrays([a], ["x"])], ["inner"]),
    "struct that may be null": lambda a: pa.array(
        [None if value is None else {"inner": value} for value in a.to_pylist()], pa.struct([("inner", pa.string())])
    ),
}


def value_at(value: Any, path: list[str]) -> Any:
    for field in path:
        value = None if value is None else value[field]
    return value.decode() if isinstance(value, bytes) else value


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=VALUES,
    kind=st.sampled_from(sorted(KINDS)),
    layout=st.fixed_dictionaries(
        {
            "row_group_size": st.integers(1, 40),
            "data_page_size": st.sampled_from([1, 100, MB]),
            "use_dictionary": st.booleans(),
            "compression": st.sampled_from(["none", "snappy", "zstd", "gzip", "brotli", "lz4"]),
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
            "write_page_index": st.booleans(),
            "write_page_checksum": st.booleans(),
            "store_schema": st.booleans(),
        }
    ),
    rows=st.integers(1, 40),
)
def test_the_same_rows_as_pyarrow(
    tmp_path: Path, values: list[str | None], kind: str, layout: dict[str, Any], rows: int
) -> None:
    name = {"struct": "a.inner", "struct of struct": "a.inner.x", "struct that may be null": "a.inner"}.get(kind, "a")
    ids = pa.array([None if i % 5 == 0 else i for i in range(len(values))], pa.int64())
    path = write(tmp_path / "a.parquet", {"id": ids, "a": KINDS[kind](pa.array(values, pa.string()))}, **layout)
    wanted = pq.read_table(path).to_pylist()
    found = rows_of(path, rows, text_column=name, id_column="id")
    assert [(row.row, row.text) for row in found] == [
        (number, value_at(row["a"], name.split(".")[1:])) for number, row in enumerate(wanted)
    ]
    assert [row.id for row in found] == [None if row["id"] is None else str(row["id"]) for row in wanted]


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_each_encoding(tmp_path: Path, encoding: str) -> None:
    values = [f"a long beginning {i % 7} and {i}" for i in range(900)]
    layout = {"use_dictionary": False, "column_encoding": {"text": encoding}, "data_page_size": 2000}
    assert texts(write(tmp_path / "a.parquet", {"text": values}, **layout)) == values


def test_a_shard_of_type_null_among_others(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.parquet", {"text": [f"one text {i}" for i in range(9)], "n": range(9)})
    write(folder / "b.parquet", {"text": pa.nulls(3), "n": [7, 8, 9]})
    write(folder / "c.parquet", {"text": pa.nulls(0), "n": pa.array([], pa.int64())})
    write(folder / "d.parquet", {"text": pa.array(["a large one"], pa.large_string()), "n": [3.5]})
    counts = prepare("parquet", folder, tmp_path / "out").documents
    assert (counts["in"], counts["dropped"]) == (13, {"no_text": 3})
    write(folder / "e.parquet", {"txet": ["a text"]})
    refused = prepare("parquet", folder, tmp_path / "out2")
    assert refused.code == 2
    assert "e.parquet has no column 'text'" in refused.sentence
    assert "did you mean 'txet'?" in refused.sentence


def test_a_column_of_type_null_in_the_filter_and_as_id(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a", "b"], "x": pa.nulls(2)})
    assert [row.problem for row in rows_of(path, filter="x == 3")] == ["filter", "filter"]
    assert [(row.text, row.id) for row in rows_of(path, filter="x is null", id_column="x")] == [
        ("a", None),
        ("b", None),
    ]


def test_ids_of_any_type(tmp_path: Path) -> None:
    columns = {
        "text": ["a", "b"],
        "uuid": pa.array([bytes(16), None], pa.uuid()),
        "time": pa.array([0, None], pa.timestamp("us")),
        "far": pa.array([1 << 62, None], pa.timestamp("us")),
        "many": pa.array([[1 << 62], None], pa.list_(pa.timestamp("us"))),
        "inside": pa.array([{"id": 5}, None], pa.struct([("id", pa.int64())])),
    }
    path = write(tmp_path / "a.parquet", columns)
    for column, wanted in (("uuid", "00000000-0000-0000-0000-000000000000"), ("inside.id", "5")):
        assert [row.id for row in rows_of(path, id_column=column)] == [wanted, None]
    assert [row.id for row in rows_of(path, id_column="time")] == ["1970-01-01 00:00:00", None]
    assert [row.id for row in rows_of(path, id_column="far")] == [str(1 << 62), None]
    with pytest.raises(SourceError, match=r"source\.id_column holds list<.*which has no text"):
        rows_of(path, id_column="many")


def test_a_column_whose_name_has_dots_comes_before_a_field(tmp_path: Path) -> None:
    nested = pa.array([{"text": "inside"}])
    both = write(tmp_path / "a.parquet", {"doc": nested, "doc.text": ["at the top"]})
    assert texts(both, text_column="doc.text") == ["at the top"]
    odd = write(tmp_path / "b.parquet", {"a.b": pa.array([{"c.d": "found", "e": 1}])})
    assert texts(odd, text_column="a.b.c.d", filter='column("a.b.e") == 1') == ["found"]
    twice = pa.StructArray.from_arrays([pa.array(["x"]), pa.array(["y"])], ["text", "text"])
    with pytest.raises(SourceError, match=r"more than one column 'doc\.text'"):
        texts(write(tmp_path / "c.parquet", {"doc": twice}), text_column="doc.text")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, r"no column 'text' .*its columns are doc, list, n, doc\.body, doc\.meta, doc\.meta\.text: did you mean 'doc\.meta\.text'\?"),
        ({"text_column": "doc.bodi"}, r"did you mean 'doc\.body'\?"),
        ({"text_column": "doc"}, r"holds struct<.*, not text; its text columns are doc\.body, doc\.meta\.text"),
        ({"text_column": "list"}, r"holds list<.*, not text"),
        ({"text_column": "list.element"}, r"no column 'list\.element'"),
        ({"text_column": "n"}, r"column 'n' holds int64, not text"),
        ({"text_column": "doc.body.x"}, r"no column 'doc\.body\.x'"),
        ({"text_column": "doc.body", "id_column": "doc.id"}, r"no column 'doc\.id' \(source\.id_column\)"),
        ({"text_column": "doc.body", "filter": 'column("doc.body") > 3'}, r"column 'doc\.body' holds string"),
    ],
)  # fmt: skip
def test_which_columns_are_refused(tmp_path: Path, settings: dict[str, str], sentence: str) -> None:
    doc = pa.array([{"body": "a text", "meta": {"text": "x"}}])
    path = write(tmp_path / "a.parquet", {"doc": doc, "list": [["a"]], "n": [1]})
    with pytest.raises(SourceError, match=sentence):
        rows_of(path, **settings)


def test_a_struct_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    first, second = pa.array([{"other": "x"}]), pa.array([{"text": "y"}])
    pq.write_table(pa.Table.from_arrays([first, second], names=["doc", "doc"]), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet"):
        texts(tmp_path / "a.parquet", text_column="doc.text")


def test_only_the_field_is_read(tmp_path: Path) -> None:
    doc = pa.array([{"text": f"text {i}", "other": "zzzzzzzz"} for i in range(50)])
    path = write(tmp_path / "a.parquet", {"doc": doc}, compression="none", use_dictionary=False)
    # A page of a field that is not read may be rubbish, and nobody sees it.
    path.write_bytes(path.read_bytes().replace(b"zzzzzzzz", b"\xff" * 8))
    assert texts(path, text_column="doc.text") == [f"text {i}" for i in range(50)]


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"]})
    path.write_bytes(path.read_bytes()[:-4] + b"PARE")
    with pytest.raises(SourceError, match="is encrypted"):
        texts(path)


def layouts(folder: Path) -> dict[str, Path]:
    columns = {
        "text": [f"text {i} " * 5 for i in range(120)],
        "n": [None if i % 3 else i for i in range(120)],
        "doc": [{"text": f"{i % 4}"} for i in range(120)],
    }
    return {
        "checksums": write(folder / "a.parquet", columns, row_group_size=50, write_page_checksum=True),
        "plain": write(folder / "b.parquet", columns, compression="none", use_dictionary=False, data_page_size=200),
        "page index": write(folder / "c.parquet", columns, write_page_index=True, data_page_version="2.0"),
    }


@pytest.mark.parametrize("layout", ["checksums", "plain", "page index"])
@pytest.mark.parametrize("part", ["footer", "anywhere"])
def test_flipped_bytes_give_rows_or_a_sentence(tmp_path: Path, layout: str, part: str) -> None:
    path = layouts(tmp_path)[layout]
    data = path.read_bytes()
    asked = {"id_column": "n", "filter": "n is null or n >= 0", "text_column": "doc.text"}
    whole = rows_of(path, **asked)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    draw = random.Random(layout + part)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            damaged[draw.randrange(footer if part == "footer" else 4, len(data))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            rows = rows_of(path, **asked)
        except SourceError as error:
            refused += 1
            assert path.name in str(error)
        else:
            assert len(rows) == len(whole)
    assert refused > 20


def test_a_dictionary_that_stands_for_gigabytes(tmp_path: Path) -> None:
    ones = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000), pa.array(["x" * MB]))
    path = write(tmp_path / "a.parquet", {"text": ones}, compression="zstd")
    assert path.stat().st_size < 10_000
    config = SourceConfig(kind="parquet", path=str(path))
    (part,) = scan_parquet(SourceFile("a", str(path), path.stat().st_size), config, Limits(1 << 20, None)).parts
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        for _, row in zip(range(200), read_parquet(part, config), strict=False):
            assert row.text is not None
            assert len(row.text) == MB
        assert 0 < pool.max_memory() < 300 * MB
    finally:
        pa.set_memory_pool(before)


def test_a_record_that_is_too_large_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["small", "y" * (33 * MB), "small too"]}, compression="zstd")
    found = rows_of(path)
    assert [row.text for row in found] == ["small", None, "small too"]
    assert found[1].problem == TOO_LARGE


def test_a_page_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_MOST_PAGE_BYTES", MB)
    columns = {"text": ["small", "y" * (2 * MB)], "other": ["z" * (2 * MB), ""]}
    path = write(tmp_path / "a.parquet", columns, use_dictionary=False)
    with pytest.raises(SourceError, match=r"a\.parquet: a page of the column text has 2 MB decompressed"):
        rows_of(path)
    assert len(rows_of(write(tmp_path / "b.parquet", {**columns, "text": ["a", "b"]}))) == 2
