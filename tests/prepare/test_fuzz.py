"""Rubbish of every kind, drawn by hypothesis: `make fuzz` draws far more than a test run does.

A source is read to the last row, or refused as a SourceError; whichever way it is cut, its rows are the same. A dataset that
was changed is refused, or what was changed is nothing that anyone reads.
"""

import contextlib
import gzip
import json
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.corpora import recipe

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import SPLITS
from packtrain.data.format.shards import open_dataset
from packtrain.data.inspect import find_sources
from packtrain.errors import DatasetError, SourceError, TokenizerError
from packtrain.prepare.sources.documents import plan_slices, read_rows
from packtrain.prepare.sources.slices import Row
from packtrain.prepare.verify import verify
from packtrain.storage.store import LocalStore

fuzzed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}

# What readers look for, so that it is there often, among whatever else.
MARKS = [
    b"\n",
    b"\r\n",
    b"\r",
    b'"',
    b'""',
    b",",
    b"\t",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
]
MARKS += [
    b'{"text": "a"}\n',
    b'{"text": null}\n',
    b'{"text": "\\ud800"}',
    b'"text"',
    b"text\n",
    b"text,id\n",
    b"NaN",
    b"1e999",
    b"<sep>",
    b"<se",
]
rubbish = st.lists(st.one_of(st.sampled_from(MARKS), st.binary(max_size=6)), max_size=30).map(b"".join)
texts = st.text(max_size=40)

# What begins a file that is an array, compressed, an archive, parquet, or in UTF-16 or UTF-32.
NOT_LINES = re.compile(
    rb"(\xef\xbb\xbf)?[ \t\r\n]*\[[ \t\r\n]*\{|\x1f\x8b|\x28\xb5\x2f\xfd|\xff\xfe|\xfe\xff|[^\0]\0[^\0]\0|\0[^\0]\0[^\0]"
    rb"|BZh.1AY&SY|\xfd7zXZ\0|\x04\x22M\x18|PK\x03\x04|7z\xbc\xaf'\x1c|Rar!\x1a\x07|PAR1|\0\0\xfe\xff",
    re.DOTALL,
)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example."""
    with tempfile.TemporaryDirectory(prefix="packtrain-fuzz-") as name:
        yield Path(name)


def rows(made: Recipe, workspace: Path) -> list[Row]:
    plan = plan_slices(made, LocalStore(workspace))
    found = [row for piece in plan.slices for row in read_rows(piece, made.source, want_ids=True)]
    for row in found:
        assert (row.text is None) == (row.problem is not None)
        if row.text is not None:
            row.text.encode()
    return found


def rows_or_refusal(made: Recipe, workspace: Path) -> list[Row] | str:
    try:
        return rows(made, workspace)
    except SourceError as error:
        assert "\n" not in str(error)
        return str(error)


@fuzzed
@given(data=rubbish, kind=st.sampled_from(["jsonl", "csv", "text"]), ending=st.sampled_from(sorted(PACK)))
@example(data=b"text\n\r", kind="csv", ending="")
@example(data=b'"\n"', kind="csv", ending="")
def test_delimited_text_is_the_same_rows_however_it_is_cut(data: bytes, kind: str, ending: str) -> None:
    with folder() as root:
        path = root / f"a.{'txt' if kind == 'text' else kind}{ending}"
        path.write_bytes(PACK[ending](data))
        extra = {"source__separator": "<sep>"} if kind == "text" else {"source__id_column": None}
        whole, cut, fine = (
            rows_or_refusal(recipe(kind, path, prepare__slice_documents=most, **extra), root) for most in (1000, 3, 1)
        )
        assert whole == cut == fine


@fuzzed
@given(lines=st.lists(st.one_of(rubbish, texts.map(lambda t: json.dumps({"text": t}).encode())), max_size=8))
@example(lines=[b"Rar!\x1a\x07"])
def test_jsonl_is_what_a_plain_loop_reads(lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    expected = []
    for number, line in enumerate(data.split(b"\n")):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8"))
            text = value.get("text") if isinstance(value, dict) else None
            text = text if isinstance(text, str) and text.encode() is not None else None
        except (ValueError, RecursionError):
            text = None
        expected.append((number, text))
    with folder() as root:
        path = root / "a.jsonl"
        path.write_bytes(data)
        found = rows_or_refusal(recipe("jsonl", path), root)
        if isinstance(found, str):
            assert not expected or NOT_LINES.match(data)
        else:
            assert [(row.row, row.text) for row in found] == expected


@fuzzed
@given(data=st.data(), ending=st.sampled_from([".gz", ".zst"]), wanted=st.lists(texts, min_size=1, max_size=20))
def test_a_damaged_stream_is_refused_or_whole(data: st.DataObject, ending: str, wanted: list[str]) -> None:
    plain = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in wanted)
    with folder() as root:
        path = root / f"a.jsonl{ending}"
        path.write_bytes(damaged(data, PACK[ending](plain)))
        found = rows_or_refusal(recipe("jsonl", path), root)
        # gzip's header has bytes that mean nothing, and a checksum covers the rest of both.
        assert isinstance(found, str) or [row.text for row in found] in (wanted, wanted * 2)


@fuzzed
@given(
    wanted=st.lists(st.one_of(st.none(), st.text(max_size=30)), max_size=40),
    kind=st.sampled_from(["string", "large_string", "binary", "dictionary", "string_view"]),
    group=st.integers(1, 50),
    slice_documents=st.integers(1, 50),
    options=st.fixed_dictionaries(
        {
            "compression": st.sampled_from(["none", "snappy", "zstd", "gzip", "brotli"]),
            "use_dictionary": st.booleans(),
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
            "write_page_checksum": st.booleans(),
            "store_schema": st.booleans(),
        }
    ),
)
def test_parquet_of_every_make(
    wanted: list[str | None], kind: str, group: int, slice_documents: int, options: dict[str, Any]
) -> None:
    column = pa.array(wanted, pa.string())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pa, kind)())
    with folder() as root:
        table = pa.table({"before": [[1]] * len(wanted), "text": column, "id": list(range(len(wanted)))})
        pq.write_table(table, root / "a.parquet", row_group_size=group, **options)
        made = recipe("parquet", root / "a.parquet", source__id_column="id", prepare__slice_documents=slice_documents)
        found = rows_or_refusal(made, root)
        if not wanted:
            assert isinstance(found, str) and "the source is empty" in found
        else:
            assert [(row.row, row.id, row.text) for row in found] == [(n, str(n), t) for n, t in enumerate(wanted)]


@fuzzed
@given(data=st.data(), compression=st.sampled_from(["none", "zstd"]))
def test_damaged_parquet_is_refused_or_read(data: st.DataObject, compression: str) -> None:
    with folder() as root:
        path = root / "a.parquet"
        table = pa.table({"text": [f"number {n}" for n in range(60)], "id": [str(n) for n in range(60)]})
        pq.write_table(table, path, row_group_size=20, compression=compression, write_page_checksum=True)
        path.write_bytes(damaged(data, path.read_bytes()))
        found = rows_or_refusal(recipe("parquet", path, source__id_column="id"), root)
        assert isinstance(found, str) or all(isinstance(row, Row) for row in found)


@pytest.mark.very_slow
@pytest.mark.parametrize("change", [0xFF, 0x01, 0x80])
def test_parquet_with_any_one_byte_changed_is_refused_or_the_same(tmp_path: Path, change: int) -> None:
    """One such byte, asked about in the wrong way, ends the process that reads the footer."""
    path = tmp_path / "a.parquet"
    wanted = [f"number {n}" for n in range(60)]
    table = pa.table({"text": wanted, "id": [str(n) for n in range(60)]})
    pq.write_table(table, path, row_group_size=20, write_page_checksum=True)
    sound = path.read_bytes()
    for at, byte in enumerate(sound):
        path.write_bytes(sound[:at] + bytes([byte ^ change]) + sound[at + 1 :])
        found = rows_or_refusal(recipe("parquet", path, source__id_column="id"), tmp_path)
        assert isinstance(found, str) or [row.text for row in found] == wanted, at


@fuzzed
@given(
    st.lists(
        st.one_of(
            st.text(max_size=20),
            st.text(st.characters(categories=["Cs", "L"]), max_size=5),
            st.dictionaries(st.sampled_from(["text", "id", "other"]), st.one_of(texts, st.none(), st.integers())),
            st.sampled_from([None, 3, b"bytes", ["a"], ("a",)]),
        ),
        max_size=12,
    )
)
def test_a_function_that_gives_anything(values: list[Any]) -> None:
    body = (
        "import pathlib, pickle\n"
        "def documents():\n"
        "    return pickle.loads(pathlib.Path(__file__).with_suffix('.pkl').read_bytes())\n"
    )
    with folder() as root:
        (root / "mine.py").write_text(body)
        (root / "mine.pkl").write_bytes(pickle.dumps(values))
        found = rows_or_refusal(recipe("function", source__function=f"{root / 'mine.py'}:documents"), root / "work")
    sound = all(isinstance(v, str) or (isinstance(v, dict) and "text" in v) for v in values)
    assert isinstance(found, str) == (not sound or not values)
    if not isinstance(found, str):
        assert len(found) == len(values)
        for row, value in zip(found, values, strict=True):
            text = value if isinstance(value, str) else value["text"]
            is_text = isinstance(text, str) and not any("\ud800" <= c <= "\udfff" for c in text)
            assert row.text == (text if is_text else None)


def damaged(data: st.DataObject, original: bytes) -> bytes:
    """The bytes with some of them flipped, cut out, put in, or their end lost."""
    at = data.draw(st.integers(0, max(0, len(original) - 1)), "at")
    length = data.draw(st.integers(1, 40), "length")
    how = data.draw(st.sampled_from(["flip", "zero", "remove", "insert", "truncate", "append"]), "how")
    extra = data.draw(st.binary(min_size=1, max_size=20), "extra")
    return {
        "flip": original[:at] + bytes(b ^ 0xFF for b in original[at : at + length]) + original[at + length :],
        "zero": original[:at] + bytes(len(original[at : at + length])) + original[at + length :],
        "remove": original[:at] + original[at + length :],
        "insert": original[:at] + extra + original[at:],
        "truncate": original[:at],
        "append": original + extra,
    }[how]


FILES = (
    "manifest.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "train/00000.tok",
    "train/00000.idx.npy",
    "train/00000.src.parquet",
    "validation/00000.tok",
    "validation/00000.idx.npy",
    "validation/00000.src.parquet",
)


@pytest.fixture(scope="module")
def copy(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that is damaged, and mended again, by each example."""
    return Path(shutil.copytree(tiny_dataset, tmp_path_factory.mktemp("fuzz") / "copy"))


@fuzzed
@given(data=st.data(), name=st.sampled_from(FILES))
def test_a_damaged_file_is_refused(copy: Path, data: st.DataObject, name: str) -> None:
    path = copy / name
    original = path.read_bytes()
    changed = damaged(data, original)
    path.write_bytes(changed)
    try:
        verify(copy)
    except (DatasetError, TokenizerError) as error:
        assert "\n" not in str(error)
    else:
        assert changed == original or name in ("manifest.json", "tokenizer/tokenizer_config.json")
    finally:
        path.write_bytes(original)


@fuzzed
@given(data=st.data(), name=st.sampled_from(FILES[3:]))
def test_damage_of_the_same_size_is_no_crash_to_who_opens_it(copy: Path, data: st.DataObject, name: str) -> None:
    path = copy / name
    original = path.read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    path.write_bytes(original[:at] + data.draw(st.binary(min_size=1, max_size=8)) + original[at + 8 :])
    try:
        dataset = open_dataset(copy)
        for side in SPLITS:
            split = dataset.split(side)
            split.read(0, split.num_tokens)
            _ = split.document_ends
            find_sources(split, [0])
    except DatasetError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(original)


@fuzzed
@given(st.permutations(FILES[3:]))
@example([FILES[3], FILES[4], FILES[5], FILES[6], FILES[7], FILES[8]])
def test_files_in_each_others_place_are_refused(copy: Path, order: list[str]) -> None:
    originals = {name: (copy / name).read_bytes() for name in FILES[3:]}
    for name, other in zip(FILES[3:], order, strict=True):
        (copy / name).write_bytes(originals[other])
    try:
        verify(copy)
    except DatasetError:
        assert list(order) != list(FILES[3:])
    else:
        assert list(order) == list(FILES[3:])
    finally:
        for name, content in originals.items():
            (copy / name).write_bytes(content)


@fuzzed
@given(data=st.data())
def test_a_manifest_with_another_number_is_refused(copy: Path, data: st.DataObject) -> None:
    path = copy / "manifest.json"
    original = path.read_bytes()
    tree = json.loads(original)
    places = list(leaves(tree))
    holder, key = data.draw(st.sampled_from(places))
    old = holder[key]
    holder[key] = data.draw(
        st.one_of(st.none(), st.integers(-1, 2**70), st.booleans(), st.text(max_size=5), st.just([]))
    )
    path.write_text(json.dumps(tree))
    try:
        verify(copy)
    except (DatasetError, TokenizerError) as error:
        assert "\n" not in str(error)
    else:
        assert holder[key] == old
    finally:
        path.write_bytes(original)


def leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a tree that is none itself, as what holds it and its place there."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        if isinstance(value, (dict, list)):
            yield from leaves(value)
        else:
            yield node, key
