"""Whether a record of any size is read within source.max_document_mb, counted or refused, and blank ones cost nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora import recipe

from packtrain.config.recipe import Recipe
from packtrain.errors import SourceError
from packtrain.prepare.sources.documents import plan_slices, read_rows
from packtrain.prepare.sources.slices import Row
from packtrain.prepare.steps.job import hash_recipe, record_recipe
from packtrain.storage.store import LocalStore

MB = 0.01
LONG = "word " * 2_100  # 10,500 bytes


def rows_of(made: Recipe, workspace: Path) -> list[Row]:
    plan = plan_slices(made, LocalStore(workspace))
    return [row for piece in plan.slices for row in read_rows(piece, made.source)]


def limited(kind: str, path: Path, **more: Any) -> Recipe:
    return recipe(kind, path, source__max_document_mb=MB, **more)


def line(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


CASES: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "jsonl": ("a.jsonl", b"%s\n%s\n%s\n" % (line("first"), line(LONG), line("last")), {}),
    "jsonl, and no line end": ("a.jsonl", b"%s\n%s\n%s" % (line("first"), line("last"), line(LONG)), {}),
    "an array": ("a.json", b"[%s, %s,\n%s]" % (line("first"), line(LONG), line("last")), {}),
    "csv": ("a.csv", f"text,id\nfirst,1\n{LONG},2\nlast,3\n".encode(), {}),
    "csv without quoting": ("a.csv", f'text,id\nfirst,1\n"{LONG},2\nlast,3\n'.encode(), {"source__quoting": "none"}),
    "text": ("a.txt", f"first<sep>{LONG}<sep>last".encode(), {"source__separator": "<sep>"}),
    "text, and no separator": ("a.txt", f"first<sep>last<sep>{LONG}".encode(), {"source__separator": "<sep>"}),
}
KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".txt": "text"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("slice_documents", [1, 1000])
@pytest.mark.parametrize("many", [1, 250])
def test_a_larger_record_is_one_bad_row(tmp_path: Path, case: str, slice_documents: int, many: int) -> None:
    """Also one that is much larger than what is read at a time."""
    name, data, settings = CASES[case]
    path = tmp_path / name
    path.write_bytes(data.replace(LONG.encode(), LONG.encode() * many))
    made = limited(KINDS[path.suffix], path, prepare__slice_documents=slice_documents, **settings)
    rows = rows_of(made, tmp_path)
    assert [row.text for row in rows if row.text] == ["first", "last"]
    (bad,) = [row for row in rows if row.problem]
    assert bad.problem == "too_large"
    assert 10_500 * many <= bad.size < 10_600 * many
    # It is hashed like all others.
    before = plan_slices(made, LocalStore(tmp_path)).fingerprint
    path.write_bytes(path.read_bytes().replace(b"word word", b"word wond"))
    assert plan_slices(made, LocalStore(tmp_path)).fingerprint != before


@pytest.mark.parametrize("many", [1, 250])
def test_a_larger_record_with_quotes_is_refused(tmp_path: Path, many: int) -> None:
    for text in (f'text,id\n"{LONG * many}",2\nlast,3\n', 'text,id\n"open,2\n' + "more,3\n" * 2_000 * many):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(SourceError, match=r"from byte 8, is larger than source\.max_document_mb allows"):
            rows_of(limited("csv", tmp_path / "a.csv"), tmp_path)
    (tmp_path / "a.csv").write_text(LONG * many + ",text\n1,2\n")
    with pytest.raises(SourceError, match=r"does not begin with a line of column names"):
        rows_of(limited("csv", tmp_path / "a.csv"), tmp_path)


def test_a_larger_text_file_is_refused_with_its_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\n\nb\f" + LONG + "<|endoftext|>c\n\nd\n---\ne\n\n\n")
    with pytest.raises(SourceError) as refused:
        rows_of(limited("text", path), tmp_path)
    for found in (
        r"'\n\n' (at blank lines, 3 documents)",
        r"'\f' (at form feeds, 2 documents)",
        "'<|endoftext|>' (2 documents)",
        r"'\n---\n' (2 documents)",
    ):
        assert f"source.separator={found}" in str(refused.value)
    assert "raise source.max_document_mb" in str(refused.value)
    assert len(rows_of(limited("text", path, source__separator="\\f"), tmp_path)) == 2
    assert len(rows_of(recipe("text", path), tmp_path)) == 1


def test_too_many_objects_in_a_record_are_too_large(tmp_path: Path) -> None:
    """Each takes a hundred times the memory that its text does."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(line("first") + b'\n{"text": "x", "y": [' + b"[]," * 2_000_001 + b"0]}\n")
    assert [row.problem for row in rows_of(recipe("jsonl", path), tmp_path)] == [None, "too_large"]


@pytest.mark.parametrize("ending", ["", ".zst"])
@pytest.mark.parametrize("blank", [pytest.param(b"\n", marks=pytest.mark.slow), b"\r\n", b" \n"])
def test_blank_lines_are_passed_over_as_they_come(tmp_path: Path, ending: str, blank: bytes) -> None:
    """Rows keep their numbers, and a stretch of megabytes makes no slice."""
    head = {"jsonl": b"", "csv": b"text\n"}
    for kind, before in head.items():
        many = (3_000_000 if kind == "jsonl" else 60_000) // len(blank)
        if kind == "csv" and blank == b" \n":
            continue
        first, last = (line("first"), line("last")) if kind == "jsonl" else (b"first", b"last")
        path = tmp_path / f"a.{kind}{ending}"
        data = before + first + b"\n" + blank * many + last + b"\n"
        path.write_bytes(zstandard.compress(data) if ending else data)
        rows = rows_of(recipe(kind, path, prepare__slice_documents=500_000), tmp_path)
        assert [(row.text, row.row) for row in rows] == [("first", 0), ("last", many + 1)]
        plan = plan_slices(recipe(kind, path, prepare__slice_documents=500_000), LocalStore(tmp_path))
        assert len(plan.slices) < 7


@settings(deadline=None, max_examples=30)
@given(
    pieces=st.lists(st.sampled_from(["<sep>", "<se", "p>", "a", "\n", "words", "xs"]), max_size=12),
    cut=st.sampled_from([1, 1000]),
)
def test_records_are_what_a_plain_split_gives(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    # Longer than the limit, and longer than what is read at a time.
    long = {"words": "word " * 2_050, "xs": "x" * (1 << 20)}
    text = "".join(long.get(piece, piece) for piece in pieces)
    (folder / "a.txt").write_text(text)
    documents = text.split("<sep>")
    wanted = [d if len(d) + 5 * (i < len(documents) - 1) <= MB * 1e6 else None for i, d in enumerate(documents)]
    wanted = wanted[:-1] if documents[-1] == "" else wanted
    made = limited("text", folder / "a.txt", source__separator="<sep>", prepare__slice_documents=cut)
    if not text:
        with pytest.raises(SourceError, match="the source is empty"):
            rows_of(made, folder)
    else:
        assert [row.text for row in rows_of(made, folder)] == wanted


READ = """
import resource, sys
from pathlib import Path
from tests.prepare.sources.test_records import limited, rows_of
from packtrain.errors import SourceError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(sorted({row.problem or "" for row in rows_of(limited(sys.argv[1], Path(sys.argv[2])), Path(sys.argv[3]))}))
except SourceError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("jsonl", b"\n", "[]"),
        ("jsonl", b"a", "['too_large']"),
        ("csv", b'text\n"', "is larger than source.max_document_mb"),
        pytest.param("text", b"\n", "would be one document of more", marks=pytest.mark.slow),
        pytest.param("jsonl", b'[{"text": "a', "ends within its array", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_bomb_takes_little_memory(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    """Gigabytes in proportion: 256 MB of one byte, read in a process of its own."""
    path = tmp_path / "a.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        writer.write(data)
        for _ in range(256):
            writer.write(data[-1:] * (1 << 20))
    command = [sys.executable, "-c", READ, name, str(path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    said, kilobytes = done.stdout.splitlines()
    assert told in said
    assert int(kilobytes) < 150_000


def test_new_settings_leave_old_datasets_as_they_are(tmp_path: Path) -> None:
    made = recipe("csv", tmp_path)
    assert {"delimiter", "quoting", "max_document_mb"}.isdisjoint(record_recipe(made)["source"])
    for change in ({"source__delimiter": ";"}, {"source__quoting": "none"}, {"source__max_document_mb": 8}):
        assert hash_recipe(recipe("csv", tmp_path, **change)) != hash_recipe(made)
