"""Whatever a source is like: the right result with every document accounted for, or one sentence that says what is wrong."""

import bz2
import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tests.command_line import Done, packtrain, prepare
from tests.corpora import sentences, texts_of

GOOD = sentences(120)
LINES = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in GOOD)
CSV = ("text\n" + "".join(f'"{text}"\n' for text in GOOD)).encode()
ZST = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)


def flipped(data: bytes, at: int, length: int = 1) -> bytes:
    return data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + length]) + data[at + length :]


BYTES_READ: dict[str, tuple[str, bytes, int, dict[str, int]]] = {
    "byte order mark": (".jsonl", b"\xef\xbb\xbf" + LINES, 120, {}),
    "crlf": (".jsonl", LINES.replace(b"\n", b"\r\n"), 120, {}),
    "a NUL in a string": (".jsonl", LINES + b'{"text": "a \x00 b"}\n', 120, {"broken_row": 1}),
    "an escaped NUL": (".jsonl", LINES + b'{"text": "nul \\u0000 here"}\n', 121, {}),
    "a block of NULs, as a crash leaves": (".jsonl", LINES + bytes(4096), 120, {"broken_row": 1}),
    "NaN": (".jsonl", LINES + b'{"text": "fine", "x": NaN}\n{"text": NaN}\n', 121, {"no_text": 1}),
    "half of a surrogate pair": (
        ".jsonl",
        LINES + b'{"text": "\\ud800 x"}\n{"text": "\\ud83d\\ude00"}\n',
        121,
        {"not_utf8": 1},
    ),
    "half of one in a key": (".jsonl", LINES + b'{"\\ud800": 1}\n', 120, {"no_text": 1}),
    "nested without end": (".jsonl", LINES + b'{"text": ' + b"[" * 5_000 + b"\n", 120, {"broken_row": 1}),
    "nested, and sound": (
        ".jsonl",
        LINES + b'{"x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}\n",
        120,
        {"broken_row": 1},
    ),
    "an integer of 10,000 digits": (
        ".jsonl",
        LINES + b'{"text": "t", "x": ' + b"9" * 10_000 + b"}\n",
        120,
        {"broken_row": 1},
    ),
    "two encodings": (".jsonl", LINES + '{"text": "café"}\n'.encode("latin-1"), 120, {"not_utf8": 1}),
    "no line end at the end": (".jsonl", LINES + b'{"text": "the last"}', 121, {}),
    "gzip in two members": (".jsonl.gz", gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:]), 120, {}),
    "gzip and zeros behind it, as tape drives pad": (".jsonl.gz", gzip.compress(LINES) + bytes(512), 120, {}),
    "zstd with a frame to skip": (
        ".jsonl.zst",
        ZST + b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + ZST,
        120,
        {"duplicates": 120},
    ),
    "a JSON array": (".json", json.dumps([{"text": t} for t in GOOD]).encode(), 120, {}),
    "a JSON array over many lines": (".json", json.dumps([{"text": t} for t in GOOD], indent=2).encode(), 120, {}),
    "a JSON array with one broken object": (
        ".json",
        b'\xef\xbb\xbf [ {"text": "a" "b"} ,\n' + LINES.replace(b"\n", b",\n")[:-2] + b"]\n",
        120,
        {"broken_row": 1},
    ),
    "gzip without its name": (".jsonl", gzip.compress(LINES), 120, {}),
    "zstd without its name": (".jsonl", ZST, 120, {}),
    "gzip in capitals": (".JSONL.GZ", gzip.compress(LINES), 120, {}),
    "csv and a NUL": (".csv", CSV + b"a\x00b\n", 121, {}),
    "csv and a stray quote": (".csv", CSV + b'"a"b\n', 120, {"broken_row": 1}),
}


@pytest.mark.parametrize("name", BYTES_READ)
def test_what_can_be_read_is_and_the_rest_is_counted(tmp_path: Path, name: str) -> None:
    ending, data, kept, dropped = BYTES_READ[name]
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    kind = "csv" if ending == ".csv" else "jsonl"
    counts = prepare(kind, path, tmp_path / "out", "source.max_bad_fraction=0.02").documents
    duplicates = dropped.get("duplicates", 0)
    assert counts["train"] + counts["validation"] == kept
    assert counts["duplicates"] == duplicates
    assert counts["dropped"] == {reason: n for reason, n in dropped.items() if reason != "duplicates"}
    assert counts["in"] == kept + sum(dropped.values())
    assert packtrain("verify", tmp_path / "out", "--rebuild", 1).code == 0


BYTES_REFUSED: dict[str, tuple[str, bytes, str]] = {
    "utf-16": (".jsonl", LINES.decode().encode("utf-16"), "is in UTF-16; convert it (iconv"),
    "latin-1": (".jsonl", '{"text": "é"}\n'.encode("latin-1") * 9, "convert the source to UTF-8"),
    "utf-16 without its mark": (".jsonl", LINES.decode().encode("utf-16-be"), "is in UTF-16; convert it (iconv"),
    "utf-32": (".jsonl", LINES.decode().encode("utf-32"), "is in UTF-32; convert it (iconv"),
    "a JSON array of strings": (".json", json.dumps(GOOD).encode(), "a JSON list, not an object"),
    "a JSON array of both": (".json", b'[{"text": "a"}, "b"]', "between or behind its objects"),
    "a JSON array without its end": (".json", b'[{"text": "a"}, {"text": "b"', "ends within its array"),
    "two JSON arrays": (".json", b'[{"text": "a"}]\n[{"text": "b"}]\n', "between or behind its objects"),
    "a JSON object with a list": (
        ".json",
        json.dumps({"data": [{"text": t} for t in GOOD]}).encode(),
        "its keys are data",
    ),
    "one over many lines": (
        ".json",
        json.dumps({"data": [{"text": t} for t in GOOD]}, indent=1).encode(),
        "one JSON object",
    ),
    "JSON objects in one line": (".json", LINES.replace(b"\n", b""), "one JSON object per line"),
    "bzip2": (".jsonl", bz2.compress(LINES), "is compressed with bzip2, which is not read; unpack it"),
    "xz": (".jsonl.gz", gzip.compress(lzma.compress(LINES)), "is compressed with xz"),
    "gzip twice": (".jsonl.gz", gzip.compress(gzip.compress(LINES)), "is compressed twice"),
    "a zip archive": (".jsonl", b"PK\x03\x04" + bytes(100), "is a zip archive"),
    "parquet": (".jsonl", b"PAR1" + bytes(100), "is parquet; write source.kind=parquet"),
    "gzip and garbage behind it": (".jsonl.gz", gzip.compress(LINES) + b"garbage", "cut short or damaged"),
    "gzip without its end": (".jsonl.gz", gzip.compress(LINES)[:-5], "cut short or damaged"),
    "gzip with another checksum": (".jsonl.gz", flipped(gzip.compress(LINES), -8, 4), "CRC check failed"),
    "gzip of nothing": (".jsonl.gz", b"", "the source is empty"),
    "zstd without its end": (".jsonl.zst", ZST[:-5], "ends within a frame"),
    "zstd and garbage behind it": (".jsonl.zst", ZST + b"garbage behind", "cut short or damaged"),
    "zstd with a flipped byte": (".jsonl.zst", flipped(ZST, len(ZST) // 2), "cut short or damaged"),
    "csv with a quote that never closes": (".csv", CSV + b'"open\n' + b"more\n" * 5, "is never closed"),
    "csv in utf-16": (".csv", CSV.decode().encode("utf-16"), "is in UTF-16; convert it (iconv"),
    "csv with CR for line ends": (".csv", CSV.replace(b"\n", b"\r"), "column names in UTF-8"),
    "csv with its name twice": (".csv", b"text,text\na,b\n", "has more than one column 'text'"),
    "csv with semicolons": (".csv", CSV.replace(b"text\n", b"id;text\n", 1), "write source.delimiter=';'"),
    "csv with tabs": (".csv", b"id\ttext\n1\ta\n", r"write source.delimiter='\t'"),
    "csv with a line of Excel": (".csv", b"sep=;\nid;text\n1;a\n", "begins with the line 'sep=;'"),
    "csv with a blank line first": (".csv", b"\n" + CSV, "its columns are none"),
    "csv without a header": (".csv", CSV[5:], "has no column 'text'"),
    "csv of nothing": (".csv", b"", "the source is empty"),
    "csv with a header alone": (".csv", b"text\n", "the source is empty"),
}


@pytest.mark.parametrize("name", BYTES_REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    ending, data, sentence = BYTES_REFUSED[name]
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    done = prepare("csv" if ending == ".csv" else "jsonl", path, tmp_path / "out")
    assert done.code == 2
    assert sentence in done.sentence


def columns_of(kind: str) -> Any:
    made: dict[str, Callable[[], Any]] = {
        "large_string": lambda: pa.array(GOOD, pa.large_string()),
        "string_view": lambda: pa.array(GOOD, pa.string_view()),
        "binary": lambda: pa.array([text.encode() for text in GOOD], pa.binary()),
        "binary_view": lambda: pa.array([text.encode() for text in GOOD], pa.binary_view()),
        "dictionary": lambda: pa.array(GOOD).dictionary_encode(),
        "struct": lambda: pa.array([{"text": text} for text in GOOD]),
        "list": lambda: pa.array([[text] for text in GOOD]),
        "null": lambda: pa.array([None] * 120, pa.null()),
        "fixed_size_binary": lambda: pa.array([text.encode()[:9] for text in GOOD], pa.binary(9)),
    }
    return made[kind]()


def written(path: Path, column: Any, **settings: Any) -> Path:
    pq.write_table(pa.table({"text": column}), path, row_group_size=40, **settings)
    return path


@pytest.mark.parametrize("kind", ["large_string", "string_view", "binary", "binary_view", "dictionary"])
def test_any_column_of_text_is_read(tmp_path: Path, kind: str) -> None:
    counts = prepare("parquet", written(tmp_path / "a.parquet", columns_of(kind)), tmp_path / "out").documents
    assert counts["in"] == counts["train"] + counts["validation"] == 120


@pytest.mark.parametrize("kind", ["list", "fixed_size_binary"])
def test_a_column_of_something_else_is_refused(tmp_path: Path, kind: str) -> None:
    done = prepare("parquet", written(tmp_path / "a.parquet", columns_of(kind)), tmp_path / "out")
    assert done.code == 2
    assert "not text; its text columns are none" in done.sentence


def test_a_struct_is_refused_and_its_text_is_named(tmp_path: Path) -> None:
    done = prepare("parquet", written(tmp_path / "a.parquet", columns_of("struct")), tmp_path / "out")
    assert done.code == 2
    assert "not text; its text columns are text.text: write source.text_column=" in done.sentence


def test_a_source_whose_every_text_is_null_is_refused(tmp_path: Path) -> None:
    done = prepare("parquet", written(tmp_path / "a.parquet", columns_of("null")), tmp_path / "out")
    assert done.code == 2
    assert "no document is left after cleaning (of 120: 120 no_text)" in done.sentence


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(GOOD), pa.array(GOOD)], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    done = prepare("parquet", tmp_path / "a.parquet", tmp_path / "out")
    assert "has more than one column 'text'" in done.sentence


def test_row_groups_without_rows(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(folder / "none.parquet", schema):
        pass
    refused = prepare("parquet", folder, tmp_path / "out")
    assert "the source is empty" in refused.sentence
    with pq.ParquetWriter(folder / "some.parquet", schema) as writer:
        for texts in (GOOD[:5], [], GOOD[5:]):
            writer.write_table(pa.table({"text": pa.array(texts, pa.string())}))
    assert prepare("parquet", folder, tmp_path / "out").documents["in"] == 120


def page_of(path: Path, group: int) -> int:
    """Where the data of a row group begins in a file."""
    column = pq.read_metadata(path).row_group(group).column(0)
    return int(column.dictionary_page_offset or column.data_page_offset)


PARQUET_DAMAGE: dict[str, tuple[dict[str, Any], Callable[[bytes, int], bytes]]] = {
    "cut short inside of a row group": ({}, lambda data, page: data[: page + 100]),
    "a row group with a hole": ({}, lambda data, page: data[: page + 40] + data[page + 300 :]),
    "a damaged page": ({}, lambda data, page: flipped(data, page + 40, 300)),
    "a page with another checksum": (
        {"compression": "none", "use_dictionary": False, "write_page_checksum": True},
        lambda data, page: flipped(data, page + 2000),
    ),
    "a footer of nothing": ({}, lambda _data, _page: b"PAR1" + bytes(4) + b"PAR1"),
    "its ends alone": ({}, lambda _data, _page: b"PAR1PAR1"),
    "no byte": ({}, lambda _data, _page: b""),
}


@pytest.mark.parametrize("name", PARQUET_DAMAGE)
def test_a_damaged_parquet_file_is_named(tmp_path: Path, name: str) -> None:
    settings, spoil = PARQUET_DAMAGE[name]
    path = written(tmp_path / "a.parquet", GOOD, **settings)
    path.write_bytes(spoil(path.read_bytes(), page_of(path, 1)))
    done = prepare("parquet", path, tmp_path / "out")
    assert done.code == 2
    assert "a.parquet" in done.sentence
    assert "cut short" in done.sentence or "damaged" in done.sentence


@pytest.mark.very_slow
def test_a_line_of_two_hundred_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(LINES + b'{"text": "')
        for _ in range(200):
            file.write(b"some more " * 100_000)
        file.write(b'"}\n')
    counts = prepare("jsonl", path, tmp_path / "out", "clean.max_chars=1000000").documents
    assert counts["in"] == 121
    assert counts["dropped"] == {"too_long": 1}


def test_a_dataset_in_the_folder_of_its_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    done = prepare("jsonl", tmp_path, tmp_path / "data" / "out")
    assert "is inside source.path=" in done.sentence
    assert not (tmp_path / "data" / "out").exists()
    assert prepare("jsonl", tmp_path / "*.jsonl", tmp_path / "data" / "out").documents["in"] == 120


def make_folder(root: Path) -> Path:
    made = root / "text"
    made.mkdir()
    (made / "a.jsonl").write_bytes(LINES)
    return made


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.jsonl").write_text('{"text": "by a folder"}\n')
    (tmp_path / "c").write_text('{"text": "by a file"}\n')
    (folder / "deeper").symlink_to(elsewhere)
    (folder / "c.jsonl").symlink_to(tmp_path / "c")
    (folder / "again").symlink_to(folder)
    (elsewhere / "back").symlink_to(folder)
    assert prepare("jsonl", folder, tmp_path / "out").documents["in"] == 122
    shutil.rmtree(tmp_path / "out")
    assert prepare("jsonl", folder / "*.jsonl", tmp_path / "out").documents["in"] == 121
    shutil.rmtree(tmp_path / "out")
    assert prepare("jsonl", folder / "**" / "*.jsonl", tmp_path / "out").documents["in"] == 122


def test_links_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "b.jsonl").symlink_to(tmp_path / "nothing")
    assert f"{folder / 'b.jsonl'} is gone" in prepare("jsonl", folder, tmp_path / "out").sentence
    (folder / "b.jsonl").unlink()
    (folder / "b.jsonl").symlink_to(folder / "b.jsonl")
    for path in (folder, folder / "b.jsonl"):
        assert "Too many levels of symbolic links" in prepare("jsonl", path, tmp_path / "out").sentence


@pytest.mark.parametrize("path", ["pipe.jsonl", "."])
def test_a_pipe_is_told(tmp_path: Path, path: str) -> None:
    folder = make_folder(tmp_path)
    os.mkfifo(folder / "pipe.jsonl")
    assert "is a pipe, device or the like" in prepare("jsonl", folder / path, tmp_path / "out").sentence


def test_names_of_every_kind(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for name in ("new\nline.jsonl", "[brackets]*.jsonl", "\x1b[31mred.jsonl", "日本.jsonl"):
        (folder / name).write_text(json.dumps({"text": f"text of {name}"}) + "\n")
        assert prepare("jsonl", folder / name, tmp_path / "one", "split.validation_fraction=0").documents["in"] == 1
        shutil.rmtree(tmp_path / "one")
    assert prepare("jsonl", folder, tmp_path / "out").documents["in"] == 124
    done = prepare("csv", folder / "\x1b[31mred.jsonl", tmp_path / "two")
    assert "\x1b" not in done.sentence
    assert r"\x1b[31mred.jsonl is jsonl: " in done.sentence
    assert r"new\nline.jsonl is jsonl: " in prepare("csv", folder / "new\nline.jsonl", tmp_path / "two").sentence


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    path = os.fsencode(folder) + b"/\xff.jsonl"
    try:
        Path(os.fsdecode(path)).write_bytes(LINES)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert "is not UTF-8; give it another name" in prepare("jsonl", folder, tmp_path / "out").sentence


POWERLESS = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.command_line import Done, packtrain, prepare
root = Path({root!r})
told = {{}}
for name, path in {sources!r}:
    (root / name).chmod(0o000)
    told[f"{{path}} without {{name}}"] = prepare("jsonl", root / path, root / "out")
    (root / name).chmod(0o755)
for name in {parts!r}:
    (root / "copy" / name).chmod(0o000)
    told[name] = packtrain("verify", root / "copy")
    (root / "copy" / name).chmod(0o755)
(root / "full").chmod(0o555)
told["full"] = prepare("jsonl", root / "text" / "a.jsonl", root / "full" / "out")
print(json.dumps(told))
"""


def test_what_this_user_may_not_is_told(tmp_path: Path, tiny_dataset: Path) -> None:
    """In a process without root's power to pass over permission bits."""
    (tmp_path / "text" / "sub").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    for path in ("text/a.jsonl", "text/sub/b.jsonl"):
        (tmp_path / path).write_bytes(LINES)
    shutil.copytree(tiny_dataset, tmp_path / "copy")
    sources = [
        ("text/sub", "text"),
        ("text/sub", "text/**/*.jsonl"),
        ("text/sub/b.jsonl", "text"),
        ("text", "text/a.jsonl"),
    ]
    parts = ["manifest.json", "train/00000.tok", "train/00000.idx.npy", "tokenizer"]
    script = POWERLESS.format(tests=str(Path(__file__).parents[3]), root=str(tmp_path), sources=sources, parts=parts)
    command = [sys.executable, "-c", script]
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root reads everything, and there is no setpriv to give that up")
        power = "-dac_override,-dac_read_search"
        command = ["setpriv", "--bounding-set", power, "--inh-caps", power, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = {name: Done(*fields) for name, fields in json.loads(done.stdout).items()}
    assert len(told) == len(sources) + len(parts) + 1
    for name, each in told.items():
        assert each.code == 2, (name, each)
        assert "Permission denied" in each.sentence, name
    assert f"'{tmp_path}/text/sub'" in told["text without text/sub"].sentence
    assert f"'{tmp_path}/text/sub'" in told["text/**/*.jsonl without text/sub"].sentence
    assert "sub/b.jsonl cannot be read" in told["text without text/sub/b.jsonl"].sentence
    assert "out cannot be written (Permission denied); choose another folder" in told["full"].sentence


def function(folder: Path, body: str) -> Path:
    path = folder / "mine.py"
    path.write_text(body)
    return path


FUNCTIONS_REFUSED = {
    "raises": ("yield 'a'\n    raise RuntimeError('half way')", "raised RuntimeError: half way (after 1 documents)"),
    "leaves": ("yield 'a'\n    raise SystemExit(0)", "raised SystemExit: 0 (after 1 documents)"),
    "gives bytes": ("yield b'a'", "yielded bytes as document 0"),
    "gives None": ("yield None", "yielded NoneType as document 0"),
    "gives other keys": (
        "yield {'content': 'a'}",
        "yielded a record without 'text' as document 0; its keys are content",
    ),
    "returns None": ("return None", "raised TypeError"),
    "gives nothing": ("return iter(())", "the source is empty"),
    "calls itself": ("yield from documents()", "raised RecursionError"),
}


@pytest.mark.parametrize("name", FUNCTIONS_REFUSED)
def test_what_is_wrong_with_it_is_told(tmp_path: Path, name: str) -> None:
    body, sentence = FUNCTIONS_REFUSED[name]
    done = prepare("function", function(tmp_path, f"def documents():\n    {body}\n"), tmp_path / "out")
    assert done.code == 2
    assert sentence in done.sentence


def test_one_without_end(tmp_path: Path) -> None:
    path = function(
        tmp_path, "def documents():\n    n = 0\n    while True:\n        n += 1\n        yield f'number {n}'\n"
    )
    assert prepare("function", path, tmp_path / "out", "source.max_documents=2000").documents["in"] == 2000


def test_what_it_prints_is_not_taken_for_the_result(tmp_path: Path) -> None:
    path = function(
        tmp_path, "def documents():\n    for n in range(99):\n        print(n)\n        yield f'number {n}'\n"
    )
    done = prepare("function", path, tmp_path / "out")
    assert done.documents["in"] == 99
    assert "98" in done.err.split()


def test_one_that_gives_something_else_each_time_is_run_once(tmp_path: Path) -> None:
    body = "import os\ndef documents():\n    for n in range(99):\n        yield f'{n} {os.urandom(8).hex()}'\n"
    path = function(tmp_path, body)
    assert prepare("function", path, tmp_path / "out").documents["in"] == 99
    assert "other source files" in prepare("function", path, tmp_path / "out").sentence
    assert "has other content now" in packtrain("verify", tmp_path / "out", "--rebuild", 1).sentence


def test_text_of_every_unicode_category(tmp_path: Path) -> None:
    by_category: dict[str, list[str]] = {}
    for point in range(sys.maxunicode + 1):
        by_category.setdefault(unicodedata.category(chr(point)), []).append(chr(point))
    del by_category["Cs"]
    assert len(by_category) == 29
    texts = [
        f"{name} {start} {''.join(characters[start :: len(characters) // 40 + 1])} end"
        for name, characters in sorted(by_category.items())
        for start in range(4)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
    settings = (
        "clean.normalize=none",
        "clean.control_characters=false",
        "clean.whitespace=false",
        "clean.line_ends=false",
    )
    assert prepare("jsonl", path, tmp_path / "out", "split.validation_fraction=0.1", *settings).documents["in"] == len(
        texts
    )
    assert sorted(texts_of(tmp_path / "out")) == sorted(texts)
    assert prepare("jsonl", path, tmp_path / "clean").documents["in"] == len(texts)
    kept = texts_of(tmp_path / "clean")
    assert not any(unicodedata.category(c) == "Cc" for text in kept for c in text if c not in "\n\t")
