"""A plan is laid out once, kept whole or not at all, and never used when it is damaged."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.memory_stream import MemoryStream

import packtrain.data.rows.pack
from packtrain.data.format.shards import open_dataset
from packtrain.data.rows.bestfit import lay_out
from packtrain.data.rows.index import DocumentIndex
from packtrain.data.rows.pack import Packing, plan
from packtrain.data.rows.plan import RowPlan

LENGTHS = [5, 1, 0, 17, 3, 8, 40, 2, 2, 9, 30, 4, 16]


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packtrain" / "plans"


@pytest.fixture
def stream(tmp_path: Path) -> MemoryStream:
    return MemoryStream(LENGTHS, plan_folder=tmp_path / "dataset" / "plans")


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time that rows are laid out."""
    made: list[int] = []

    def counted(index: DocumentIndex, seq_len: int) -> Iterator[dict[str, np.ndarray]]:
        made.append(seq_len)
        return lay_out(index, seq_len)

    monkeypatch.setattr(packtrain.data.rows.pack, "lay_out", counted)
    return made


def content(layout: RowPlan) -> list[bytes]:
    shape = (layout.num_rows, layout.seq_len)
    arrays = [np.empty(shape, dtype) for dtype in (np.int64, np.int64, np.int32, np.int64)]
    layout.fill(np.arange(layout.num_rows), *arrays)
    return [array.tobytes() for array in arrays]


def expected(stream: MemoryStream, packing: Packing = "bestfit") -> list[bytes]:
    return content(plan(replace(stream, plan_folder=None), 8, packing))


def test_a_second_start_loads_what_the_first_laid_out(stream: MemoryStream, layouts: list[int]) -> None:
    first, second = plan(stream, 8, "bestfit"), plan(stream, 8, "bestfit")
    assert layouts == [8]
    assert content(first) == content(second) == expected(stream)
    assert (first.hash, first.num_rows, first.num_targets) == (second.hash, second.num_rows, second.num_targets)
    assert first.num_cut_documents == second.num_cut_documents
    assert [first.rows_of(d) for d in range(len(LENGTHS))] == [second.rows_of(d) for d in range(len(LENGTHS))]
    # Mapped, so that processes share it.
    base = second._member_starts.base  # type: ignore[attr-defined]
    assert isinstance(base, np.memmap) and not second._member_starts.flags.writeable  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any), seq_len=st.integers(1, 20))
def test_a_kept_plan_is_the_plan(lengths: list[int], seq_len: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stream = MemoryStream(lengths, plan_folder=Path(folder))
        plan(stream, seq_len, "bestfit")
        kept, laid_out = plan(stream, seq_len, "bestfit"), plan(MemoryStream(lengths), seq_len, "bestfit")
        assert content(kept) == content(laid_out)
        assert [kept.rows_of(d) for d in range(len(lengths))] == [laid_out.rows_of(d) for d in range(len(lengths))]


def test_another_length_or_dataset_is_another_plan(stream: MemoryStream, layouts: list[int]) -> None:
    plan(stream, 8, "bestfit")
    plan(stream, 9, "bestfit")
    plan(replace(stream, manifest_hash="another"), 8, "bestfit")
    plan(replace(stream, name="validation"), 8, "bestfit")
    assert layouts == [8, 9, 8, 8]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "one bit of an array": lambda folder: flip(folder / "member_starts.bin"),
    "an array cut short": lambda folder: os.truncate(folder / "shared_ends.bin", 8),
    "an array gone": lambda folder: (folder / "member_lengths.bin").unlink(),
    "one bit of the head": lambda folder: flip(folder / "plan.json"),
    "an empty head": lambda folder: (folder / "plan.json").write_bytes(b""),
    "a head of rubbish": lambda folder: (folder / "plan.json").write_bytes(b'[{"content": 3}]'),
    "a folder in place of the head": lambda folder: ((folder / "plan.json").unlink(), (folder / "plan.json").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_plan_is_laid_out_anew(
    stream: MemoryStream, layouts: list[int], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = plan(stream, 8, "bestfit").hash
    assert stream.plan_folder is not None
    DAMAGE[damage](stream.plan_folder / name)
    assert content(plan(stream, 8, "bestfit")) == expected(stream)
    assert len(caplog.messages) == 1 and "laid out again" in caplog.messages[0] and name in caplog.messages[0]
    layouts.clear()
    assert content(plan(stream, 8, "bestfit")) == expected(stream)
    assert not layouts[1:] and len(caplog.messages) == 1


def test_a_head_that_is_gone_is_no_plan(stream: MemoryStream, layouts: list[int]) -> None:
    name = plan(stream, 8, "bestfit").hash
    assert stream.plan_folder is not None
    (stream.plan_folder / name / "plan.json").unlink()
    plan(stream, 8, "bestfit")
    plan(stream, 8, "bestfit")
    assert layouts == [8, 8]


def test_the_plan_of_another_dataset_under_this_ones_name_is_not_used(
    stream: MemoryStream, caplog: pytest.LogCaptureFixture
) -> None:
    other = plan(replace(stream, lengths=[9] * 9, manifest_hash="another"), 8, "bestfit").hash
    name = plan(replace(stream, plan_folder=None), 8, "bestfit").hash
    assert stream.plan_folder is not None
    (stream.plan_folder / other).rename(stream.plan_folder / name)
    assert content(plan(stream, 8, "bestfit")) == expected(stream)
    assert "it belongs to another dataset" in caplog.messages[0]


def test_a_dataset_that_cannot_be_written_keeps_its_plans_in_the_users_cache(
    stream: MemoryStream, layouts: list[int], user_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dataset").write_text("not a folder")
    first, second = plan(stream, 8, "bestfit"), plan(stream, 8, "bestfit")
    assert layouts == [8] and (user_cache / first.hash / "plan.json").is_file()
    assert content(first) == content(second) == expected(stream)
    assert not caplog.messages


def test_where_nothing_can_be_written_a_plan_is_in_memory_and_said_to_be(
    stream: MemoryStream, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "dataset"))
    assert content(plan(stream, 8, "bestfit")) == expected(stream)
    assert len(caplog.messages) == 1 and "cannot be kept" in caplog.messages[0]


def test_processes_that_start_together_lay_out_one_plan(stream: MemoryStream, layouts: list[int]) -> None:
    found: list[RowPlan] = []
    starts = [threading.Thread(target=lambda: found.append(plan(stream, 8, "bestfit"))) for _ in range(8)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert layouts == [8]
    assert [content(layout) for layout in found] == [expected(stream)] * 8


def test_what_a_killed_process_left_is_swept_away(stream: MemoryStream) -> None:
    assert stream.plan_folder is not None
    left = stream.plan_folder / ".0123.99.tmp"
    left.mkdir(parents=True)
    (left / "member_starts.bin").write_bytes(b"half")
    name = plan(stream, 8, "bestfit").hash
    assert sorted(path.name for path in stream.plan_folder.iterdir()) == [".lock", name]


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from tests.data.memory_stream import MemoryStream
from packtrain.data.rows.pack import plan
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
layout = plan(MemoryStream([7, 2, 9] * 3000, plan_folder=Path(sys.argv[2])), 8, "bestfit")
assert layout.num_targets == 54000
"""


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, user_cache: Path) -> None:
    """A limit on file sizes stands for it."""
    plans = tmp_path / "plans"
    here = str(Path(__file__).parents[3])
    done = subprocess.run([sys.executable, "-c", FULL_DISK, here, str(plans)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot be kept" in done.stderr and "File too large" in done.stderr
    assert [path.name for path in (*plans.iterdir(), *user_cache.iterdir())] == [".lock", ".lock"]


def test_the_ends_of_many_documents_are_kept_in_a_file(stream: MemoryStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packtrain.data.rows.pack._MAX_ENDS_IN_MEMORY", 4)
    wanted = expected(stream, "concat")
    for _ in range(2):
        layout = plan(stream, 8, "concat")
        assert content(layout) == wanted
        assert isinstance(layout._ends.base, np.memmap)  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert content(plan(stream, 8, "concat")) == wanted


def test_plans_of_a_dataset_lie_beside_it(tiny_dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_dataset, tmp_path / "tiny")
    layout = plan(open_dataset(folder).split("train"), 32, "bestfit")
    assert (folder / "plans" / layout.hash / "plan.json").is_file()
    assert content(plan(open_dataset(folder).split("train"), 32, "bestfit")) == content(layout)
