"""Disks that are too small: predicted, or, with the check off, hit in each stage. Finished work is always kept."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.corpora import files_of, recipe, sentences, write_jsonl

from packtrain.errors import DiskFullError
from packtrain.prepare.run import prepare
from packtrain.prepare.sources.slices import Part, Slice
from packtrain.prepare.steps.disk_budget import DiskBudget, readable
from packtrain.storage.store import LocalStore


def slices(count: int, size: int) -> list[Slice]:
    """Slices of a thousand rows and `size` bytes each."""
    return [Slice(i, (Part("f", "f", 1000 * i, 1000, size, ""),)) for i in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_a_source_far_larger_than_the_disk_is_not_begun(store: LocalStore) -> None:
    with pytest.raises(
        DiskFullError, match=r"free, and about 5\d\d\.\d\d TB are still to be written.*disk_check=false"
    ):
        DiskBudget(store, recipe("stdlib"), 2).to_scan(slices(1000, 10**12), 10**6)


def test_a_source_is_begun_without_tokens_or_without_the_check(store: LocalStore) -> None:
    DiskBudget(store, recipe("stdlib"), None).to_scan(slices(1000, 10**12), 10**6)
    DiskBudget(store, recipe("stdlib", prepare__disk_check=False), 2).to_scan(slices(1000, 10**12), 10**6)


def test_what_scans_leave_out_is_not_counted(store: LocalStore) -> None:
    every = slices(1000, 10**9)
    budget = DiskBudget(store, recipe("stdlib"), 2)
    # Of a source that looks small from outside nothing is left out, and then text turns out to be a thousand times it.
    budget.to_scan(slices(1000, 10**5), 10**6)
    budget.scanned(slices(1, 10**5)[0], 10**5)
    with pytest.raises(DiskFullError):
        budget.scanned(slices(1, 10**5)[0], 10**14)
    budget = DiskBudget(store, recipe("stdlib"), 2)
    budget.to_scan(every[:1], 10**3)
    budget.scanned(every[0], 0)


def test_tokens_are_measured(store: LocalStore) -> None:
    budget = DiskBudget(store, recipe("stdlib"), 2)
    budget.to_scan(slices(10, 10**6), 10**4)

    def record(size: int) -> dict[str, object]:
        shard = {"documents": 1, "utf8_bytes": 10**6, "files": {"tok": {"size": size}}}
        return {"shards": {"train": shard}}

    budget.measured(record(10**6))
    budget.scanned(slices(1, 10**6)[0], 10**6)
    budget.measured(record(10**15))
    with pytest.raises(DiskFullError):
        budget.scanned(slices(1, 10**6)[0], 10**6)


def test_sizes_in_words() -> None:
    assert [readable(n) for n in (0, 999, 1000, 25_340_000, 3.2e12)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "25.3 MB",
        "3.20 TB",
    ]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A file system of its own, and what sets its bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder, resize
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.slow
def test_wherever_the_disk_fills_up_the_rest_can_be_done_later(
    tmp_path: Path, disk: tuple[Path, Callable[[int], None]], near: bool
) -> None:
    folder, resize = disk
    made = recipe(
        "jsonl",
        write_jsonl(tmp_path / "a.jsonl", sentences(300)),
        prepare__slice_documents=50,
        prepare__disk_check=False,
        dedup__near=near,
    )
    prepare(made, tmp_path / "clean")
    needed = sum(path.stat().st_size for path in (tmp_path / "clean").rglob("*"))
    stages = set()
    for size in range(4096, 8 * needed, 20_000):
        resize(size)
        try:
            prepare(made, folder / "out")
        except DiskFullError as error:
            assert "finished work is kept" in str(error)
            assert not list(folder.rglob("*.tmp"))
            work = folder / "out" / ".work"
            stages.add("tokens" if list(work.glob("tokens/*")) else "choice" if list(work.glob("keep*")) else "scan")
            continue
        break
    assert files_of(folder / "out") == files_of(tmp_path / "clean")
    assert {"scan", "tokens"} <= stages


def test_a_full_disk_is_predicted(tmp_path: Path, disk: tuple[Path, Callable[[int], None]]) -> None:
    folder, resize = disk
    made = recipe(
        "jsonl",
        write_jsonl(tmp_path / "a.jsonl", sentences(400)),
        prepare__slice_documents=50,
    )
    resize(1 << 20)
    with pytest.raises(DiskFullError, match="are still to be written; finished work is kept"):
        prepare(made, folder / "out")
    assert not list((folder / "out").rglob("*.scan"))
    resize(1 << 23)
    prepare(made, folder / "out")
    prepare(made, tmp_path / "clean")
    assert files_of(folder / "out") == files_of(tmp_path / "clean")


def test_another_program_fills_the_disk_meanwhile(tmp_path: Path, disk: tuple[Path, Callable[[int], None]]) -> None:
    folder, resize = disk
    resize(1 << 23)
    made = recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", sentences(400)), prepare__slice_documents=50)
    other = folder / "other"

    def fill(done: int, total: int) -> None:
        if done > total // 2 and not other.exists():
            other.write_bytes(bytes((1 << 23) - (1 << 20)))

    with pytest.raises(DiskFullError, match="are still to be written"):
        prepare(made, folder / "out", on_progress=fill)
    finished = {path.name for path in (folder / "out").rglob("tokens/*.json")}
    assert 0 < len(finished) < 8
    other.unlink()
    assert prepare(made, folder / "out").tokenized == 8 - len(finished)


def test_a_function_that_gives_more_than_fits_is_stopped(
    tmp_path: Path, disk: tuple[Path, Callable[[int], None]]
) -> None:
    folder, resize = disk
    resize(1 << 20)
    (tmp_path / "f.py").write_text(
        "import random\n\ndef documents():\n    draw = random.Random(0)\n"
        "    for _ in range(3000):\n        yield draw.randbytes(500).hex()\n"
    )
    made = recipe("function", source__function=f"{tmp_path / 'f.py'}:documents")
    with pytest.raises(DiskFullError):
        prepare(made, folder / "out")
    assert not list(folder.rglob("*.tmp"))
