"""Whether a file that is lost for the most part is refused, by rows and by bytes, and a few unreadable rows are counted."""

import json
from pathlib import Path

import pytest
from tests.corpora import recipe, sentences, write_jsonl

from packtrain.errors import SourceError
from packtrain.prepare.run import prepare

BROKEN = '{"text": '


def write(folder: Path, good: int, bad: int, size: int = 0) -> Path:
    """A large file without a fault, and one of some good and bad rows, the latter of a size."""
    folder.mkdir()
    write_jsonl(folder / "large.jsonl", sentences(2_000))
    rows = [json.dumps({"text": text}) for text in sentences(good, seed=1)] + [BROKEN + "x" * size] * bad
    (folder / "small.jsonl").write_text("\n".join(rows))
    return folder


def documents_in(folder: Path, out: Path, share: float) -> int:
    prepare(recipe("jsonl", folder, source__max_bad_fraction=share), out)
    from packtrain.data.format.manifest import read_manifest

    ledger = read_manifest(out).ledger
    assert ledger["utf8_bytes"]["dropped"].get("broken_row", 0) == 0
    return int(ledger["documents"]["in"])


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        (0, 1, "1 of 1 rows of the file small.jsonl"),
        (2, 3, "3 of 5 rows of the file small.jsonl"),
        (80, 10, "10 of 90 rows of the file small.jsonl"),
        (2, 2, None),
        (30, 9, None),
        (91, 10, None),
    ],
)
def test_a_file_of_bad_rows_is_refused_though_they_are_few_in_all(
    tmp_path: Path, good: int, bad: int, told: str | None
) -> None:
    folder = write(tmp_path / "in", good, bad)
    if told is None:
        assert documents_in(folder, tmp_path / "out", 0.05) == 2_000 + good + bad
    else:
        with pytest.raises(SourceError, match=rf"{told} cannot be read.*small\.jsonl row {good}: .*leave the file out"):
            documents_in(folder, tmp_path / "out", 0.05)
    assert documents_in(folder, tmp_path / "all", 1.0) == 2_000 + good + bad


def test_blank_lines_are_not_rows_of_a_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", 0, 1)
    with (folder / "small.jsonl").open("a") as file:
        file.write("\n" * 500)
    with pytest.raises(SourceError, match=r"1 of 1 rows of the file small\.jsonl"):
        documents_in(folder, tmp_path / "out", 0.05)


def test_a_row_that_is_most_of_a_file_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", 300, 1, size=30_000)
    with pytest.raises(
        SourceError, match=r"30,009 of .* bytes of the file small\.jsonl are in rows that cannot be read"
    ):
        documents_in(folder, tmp_path / "out", 0.2)
    (tmp_path / "in" / "large.jsonl").unlink()
    with pytest.raises(SourceError, match=r"30,009 of .* bytes are in rows that cannot be read \(1 broken_row\)"):
        documents_in(folder, tmp_path / "out", 0.2)
    assert documents_in(folder, tmp_path / "out", 0.9) == 301


def test_text_files_are_judged_together(tmp_path: Path) -> None:
    """Each is one row, so the share of the source says all."""
    for number, text in enumerate(sentences(120)):
        (tmp_path / f"{number}.txt").write_text(text)
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    prepare(recipe("text", tmp_path), tmp_path / "out")
