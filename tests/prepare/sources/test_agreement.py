"""Whether each reader gives what the field's own reader gives, for every mark, line end, quoting, compression and name."""

import bz2
import csv
import glob
import gzip
import io
import itertools
import json
import lzma
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora import recipe

from packtrain.config.recipe import Recipe
from packtrain.errors import SourceError
from packtrain.prepare.sources.documents import plan_slices, read_rows
from packtrain.prepare.sources.listing import list_files
from packtrain.prepare.sources.slices import Row
from packtrain.storage.files import open_stream
from packtrain.storage.store import LocalStore

MARK = b"\xef\xbb\xbf"
TEXTS = ["plain", 'with "quotes", and; a | tab\tin it', "two\nlines\r\nand\rthree", "日本 é 😀", " spaces ", ""]


def skippable(data: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def zstd_frame(data: bytes, window_log: int) -> bytes:
    """A frame of one raw block that claims a window of this size."""
    block = (1 | len(data) << 3).to_bytes(3, "little") + data
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3]) + block


zstd = zstandard.ZstdCompressor(write_checksum=True).compress
PACKINGS = {
    "none": ("", bytes),
    "gzip": (".gz", gzip.compress),
    "gzip, by content": ("", gzip.compress),
    "gzip in capitals": (".Gz", gzip.compress),
    "gzip in members, one empty": (
        ".gz",
        lambda b: gzip.compress(b[: len(b) // 2]) + gzip.compress(b"") + gzip.compress(b[len(b) // 2 :]),
    ),
    "gzip and zeros": (".gz", lambda b: gzip.compress(b) + bytes(700)),
    "zstd": (".zst", zstd),
    "zstd, by content": ("", zstd),
    "zstd in frames, one empty": (
        ".ZST",
        lambda b: zstd(b"") + zstd(b[: len(b) // 2]) + zstd(b"") + zstd(b[len(b) // 2 :]),
    ),
    "zstd with frames to skip": (".zst", lambda b: skippable(b"x") + zstd(b) + skippable(bytes(3000))),
    "zstd --long=27": (".zst", lambda b: zstd_frame(b, 27)),
    "zstd --long=28": (".zst", lambda b: zstd_frame(b, 28)),
    "zstd --long=31": (".zst", lambda b: zstd_frame(b, 31)),
}


def rows_of(made: Recipe, workspace: Path) -> list[Row]:
    plan = plan_slices(made, LocalStore(workspace))
    return [row for piece in plan.slices for row in read_rows(piece, made.source, want_ids=True)]


def pack(path: Path, packing: str, data: bytes) -> Path:
    ending, compress = PACKINGS[packing]
    packed = path.with_name(path.name + ending)
    packed.write_bytes(compress(data))
    return packed


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_stream_is_what_was_compressed(tmp_path: Path, packing: str) -> None:
    for data in (b"", b"x", b"line\n" * 400_000):
        if packing.startswith("zstd --long"):
            data = data[:100_000]
        with open_stream(str(pack(tmp_path / "a", packing, data))) as stream:
            assert stream.read() == data


@pytest.mark.parametrize("packing", ["none", "gzip", "gzip, by content", "zstd in frames, one empty"])
@pytest.mark.parametrize(("mark", "end"), [*itertools.product([b"", MARK], ["\n", "\r\n"])])
def test_jsonl_is_what_json_reads(tmp_path: Path, packing: str, mark: bytes, end: str) -> None:
    for escapes, last, blank in itertools.product([False, True], ["", end], ["", end, f" \t{end}{end}"]):
        lines = [json.dumps({"text": text}, ensure_ascii=escapes) for text in TEXTS]
        data = mark + (blank + (end + blank).join(lines) + last).encode()
        wanted = [json.loads(line)["text"] for line in data.decode("utf-8-sig").split("\n") if line.strip()]
        path = pack(tmp_path / "a.jsonl", packing, data)
        if mark and blank:
            # The mark is on a line of its own, which is a broken row.
            assert [row.text for row in rows_of(recipe("jsonl", path), tmp_path) if row.text is not None] == wanted
        else:
            for most in (1, 4, 1000):
                made = recipe("jsonl", path, prepare__slice_documents=most)
                assert [row.text for row in rows_of(made, tmp_path)] == wanted == TEXTS


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(st.sampled_from('ab"\\{}[],: \n\té')), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    objects=st.lists(
        st.dictionaries(st.sampled_from(["text", "a", "]", '"']), values, max_size=3), min_size=1, max_size=8
    ),
    indent=st.sampled_from([None, 0, 2]),
    escapes=st.booleans(),
    around=st.sampled_from(["", " ", "\n", "\r\n\t"]),
    mark=st.sampled_from([b"", MARK]),
)
def test_an_array_is_what_json_reads(
    tmp_path_factory: pytest.TempPathFactory,
    objects: list[Any],
    indent: int | None,
    escapes: bool,
    around: str,
    mark: bytes,
) -> None:
    folder = tmp_path_factory.mktemp("array")
    text = around + json.dumps(objects, indent=indent, ensure_ascii=escapes) + around
    path = folder / "a.json"
    path.write_bytes(mark + text.encode("utf-8", "surrogatepass"))
    wanted = [value["text"] if isinstance(value.get("text"), str) else None for value in json.loads(text)]
    for most in (1, 3, 1000):
        assert [row.text for row in rows_of(recipe("jsonl", path, prepare__slice_documents=most), folder)] == wanted


def test_an_array_is_read_in_steps(tmp_path: Path) -> None:
    """With every string, escape and gap at the border of a megabyte once."""
    base = "x" * ((1 << 20) - 60)
    for shift in range(0, 60, 3):
        objects = [{"text": base + "y" * shift + '\\"{' * 5}, {"text": "é\n" * 9}, {"text": "last"}]
        (tmp_path / "a.json").write_text(json.dumps(objects, indent=1))
        assert [row.text for row in rows_of(recipe("jsonl", tmp_path / "a.json"), tmp_path)] == [
            o["text"] for o in objects
        ]


NESTED = {"content": {"text": "nested", "id": 7}, "a.b": "literal", "a": {"b": "walked", "c": {"d": "deep"}}, "n": None}


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        ("content.text", "nested"),
        ("a.b", "literal"),
        ("a.c.d", "deep"),
        ("a.c", None),
        ("n.x", None),
        ("content.x.y", None),
    ],
)
def test_dots_lead_to_nested_fields_of_jsonl(tmp_path: Path, column: str, wanted: str | None) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(NESTED))
    made = recipe("jsonl", tmp_path / "a.jsonl", source__text_column=column, source__id_column="content.id")
    (row,) = rows_of(made, tmp_path)
    assert (row.text, row.id, row.problem) == (wanted, "7", None if wanted else "no_text")


def test_a_nested_text_is_hinted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(NESTED))
    (row,) = rows_of(recipe("jsonl", tmp_path / "a.jsonl"), tmp_path)
    assert "did you mean source.text_column=content.text?" in row.detail


def csv_bytes(delimiter: str, end: str, quoting: Any) -> bytes:
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([["id", "text"], *([f"{i}", text] for i, text in enumerate(TEXTS))])
    return written.getvalue().encode()


@pytest.mark.parametrize("packing", ["none", "gzip in capitals", "zstd, by content"])
@pytest.mark.parametrize(
    ("ending", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".csv", ";"), (".tsv", "|"), (".csv", "\t")]
)
def test_csv_is_what_the_csv_module_reads(tmp_path: Path, packing: str, ending: str, delimiter: str) -> None:
    named = (
        {}
        if delimiter == {".csv": ",", ".tsv": "\t"}[ending]
        else {"source__delimiter": delimiter.replace("\t", "\\t")}
    )
    product = itertools.product(
        [b"", MARK], ["\n", "\r\n"], [csv.QUOTE_MINIMAL, csv.QUOTE_ALL], [b"", b"\n\r\n"], [1, 1000]
    )
    for mark, end, quoting, blank, most in product:
        data = mark + csv_bytes(delimiter, end, quoting) + blank
        path = pack(tmp_path / f"a{ending}", packing, data)
        made = recipe("csv", path, source__id_column="id", prepare__slice_documents=most, **named)
        records = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
        wanted = [tuple(fields) for fields in records if fields][1:]
        assert (
            [(row.id, row.text) for row in rows_of(made, tmp_path)]
            == wanted
            == [(f"{i}", t) for i, t in enumerate(TEXTS)]
        )


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tsv_without_quoting_is_what_the_csv_module_reads(tmp_path: Path, end: str) -> None:
    data = end.join(
        ["text\tid", 'First "hi"\t1', '"Second starts\t2', "Third\t3", "Fourth\t4", 'Fifth ends"\t5', '"all"\t6', ""]
    )
    path = tmp_path / "a.tsv"
    path.write_bytes(data.encode())
    plain = recipe("csv", path, source__quoting="none")
    records = csv.reader(io.StringIO(data, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    assert [row.text for row in rows_of(plain, tmp_path)] == [fields[0] for fields in records][1:]
    with pytest.raises(SourceError, match=r"source\.quoting=none, or source\.quoting=minimal"):
        rows_of(recipe("csv", path), tmp_path)
    quoted = csv.reader(io.StringIO(data, newline=""), delimiter="\t", strict=True)
    minimal = recipe("csv", path, source__quoting="minimal")
    assert [row.text for row in rows_of(minimal, tmp_path)] == [fields[0] for fields in quoted][1:]


def test_a_quote_that_never_closes_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tid\n"quoted start\t2\nlast\t3\n')
    with pytest.raises(SourceError, match=r"is never closed; .* source\.quoting=none"):
        rows_of(recipe("csv", tmp_path / "a.tsv"), tmp_path)
    assert len(rows_of(recipe("csv", tmp_path / "a.tsv", source__quoting="none"), tmp_path)) == 2


@pytest.mark.parametrize("packing", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("separator", ["\n", "\n\n", "\f", "<|endoftext|>", "\n---\n", "aab"])
def test_text_is_split_as_str_splits(tmp_path: Path, packing: str, separator: str) -> None:
    parts = ["one", "two\rlines\r", "", "aaab", "\f-\n", "é", "\n"]
    for mark, end, last in itertools.product([b"", MARK], ["\n", "\r\n"], ["", separator]):
        text = (separator.join(parts) + last).replace("\n", end)
        wanted = text.split(separator.replace("\n", end))
        if end == "\r\n" and "\n" in separator:
            text, wanted = text, [part.removesuffix("\r") for part in text.split(separator.replace("\n", end))]
        wanted = wanted[:-1] if wanted[-1] == "" else wanted
        path = pack(tmp_path / "a.txt", packing, mark + text.encode())
        made = recipe("text", path, source__separator=separator)
        cleaned = [(row.text or "").replace("\r", "") for row in rows_of(made, tmp_path)]
        assert cleaned == [part.replace("\r", "") for part in wanted]


def test_empty_files_have_no_rows(tmp_path: Path) -> None:
    for kind, ending in (("jsonl", ".jsonl"), ("jsonl", ".json"), ("csv", ".csv"), ("csv", ".tsv")):
        folder = tmp_path / ending
        folder.mkdir()
        good = {"jsonl": '{"text": "good"}\n', "csv": "text\ngood\n"}[kind]
        (folder / f"a{ending}").write_text(good)
        for name, data in (("b", b""), ("c", gzip.compress(b"")), ("d", zstd(b""))):
            (folder / f"{name}{ending}").write_bytes(data)
        assert [row.text for row in rows_of(recipe(kind, folder), tmp_path)] == ["good"]


NAMES = [
    *(
        "a.jsonl",
        "B.JSONL",
        "c d.jsonl",
        "é.jsonl",
        "-x.jsonl",
        "#y.jsonl",
        "%41.jsonl",
        "?q.jsonl",
        "*r.jsonl",
        "[a].jsonl",
    ),
    *(
        "~z.jsonl",
        "$HOME.jsonl",
        "new\nline.jsonl",
        "tab\t.jsonl",
        "quote'\".jsonl",
        "back\\slash.jsonl",
        "a.jsonl.txt",
    ),
    *(
        ".hidden.jsonl",
        "._a.jsonl",
        ".ipynb_checkpoints/a.jsonl",
        "in/a.jsonl",
        "in/.b.jsonl",
        "in/.c/d.jsonl",
        "in/deep/e.jsonl",
    ),
]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tree"
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}))
    (folder / "is-a-folder.jsonl").mkdir()
    yield folder


@pytest.mark.parametrize(
    "pattern",
    [
        "*.jsonl",
        "*",
        "**/*.jsonl",
        "in/*.jsonl",
        "[a-c]*.jsonl",
        "?.jsonl",
        ".*.jsonl",
        "in/.*.jsonl",
        ".ipynb_checkpoints/*",
    ],
)
def test_a_pattern_means_what_glob_finds(tree: Path, pattern: str) -> None:
    found = {os.path.relpath(file.url, tree) for file in list_files(f"{tree}/{pattern}", (".jsonl",))}
    # Not Path.glob, which differs in hidden files.
    matched = {name for name in glob.glob(pattern, root_dir=tree, recursive=True) if (tree / name).is_file()}  # noqa: PTH207
    assert found == matched


def test_a_folder_means_its_files_that_are_not_hidden(tree: Path) -> None:
    found = {file.name for file in list_files(str(tree), (".jsonl",))}
    assert found == {
        n for n in NAMES if not any(p.startswith(".") for p in n.split("/")) and n.lower().endswith(".jsonl")
    }
    for name in NAMES:
        (row,) = rows_of(recipe("jsonl", tree / name), tree)
        assert row.text == name


@pytest.mark.parametrize(("ending", "compress"), [(".bz2", bz2.compress), (".XZ", lzma.compress)])
def test_a_compression_that_is_not_read_is_refused_wherever_it_is(tmp_path: Path, ending: str, compress: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n')
    (tmp_path / f"b.jsonl{ending}").write_bytes(compress(b'{"text": "lost"}\n'))
    with pytest.raises(SourceError, match=f"b.jsonl{ending}"):
        rows_of(recipe("jsonl", tmp_path), tmp_path)
    with pytest.raises(SourceError, match="is compressed with"):
        rows_of(recipe("jsonl", tmp_path / "*.jsonl*"), tmp_path)
    shutil.copy(tmp_path / f"b.jsonl{ending}", tmp_path / "c.jsonl")
    with pytest.raises(SourceError, match=r"c\.jsonl is compressed with"):
        rows_of(recipe("jsonl", tmp_path / "*.jsonl"), tmp_path)


def test_a_name_may_have_a_query(tmp_path: Path) -> None:
    """As a URL with a token has; a file system in memory takes such names too."""
    memory = fsspec.filesystem("memory")
    for name, data in (("a.jsonl.gz", gzip.compress(b'{"text": "packed"}')), ("b.tsv", b"id\ttext\n1\ttabs\n")):
        memory.pipe_file(f"/query/{name}?token=a/b.c", data)
    urls = [f"memory://query/{name}?token=a/b.c" for name in ("a.jsonl.gz", "b.tsv")]
    try:
        assert [row.text for row in rows_of(recipe("jsonl", None, source__path=urls[0]), tmp_path)] == ["packed"]
        assert [row.text for row in rows_of(recipe("csv", None, source__path=urls[1]), tmp_path)] == ["tabs"]
    finally:
        memory.rm("/query", recursive=True)
