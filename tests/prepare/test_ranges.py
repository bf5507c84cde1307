"""Whether several processes that share the slices make the dataset that one makes."""

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.corpora import files_of, recipe, sentences, write_jsonl

from packtrain.config.load import to_toml
from packtrain.errors import ConfigError, DatasetError
from packtrain.prepare.ranges import RangeDone, parse_range, prepare_range
from packtrain.prepare.run import Prepared, prepare
from packtrain.storage.store import LocalStore

SETTINGS: dict[str, Any] = {"source__id_column": "id", "prepare__slice_documents": 20}
SCRIPT = Path(__file__).parents[2] / "docs" / "slurm" / "prepare.sh"


@pytest.mark.parametrize(
    ("text", "count", "found"),
    [("0:3", 10, (0, 3)), ("8:99", 10, (8, 10)), (":", 10, (0, 10)), ("4:", 10, (4, 10)), ("20:30", 10, (10, 10))],
)
def test_numbers(text: str, count: int, found: tuple[int, int]) -> None:
    assert parse_range(text)(count) == found


@pytest.mark.parametrize(("count", "parts"), [(10, 3), (3, 10), (1, 1), (0, 4), (97, 16)])
def test_parts_cover_every_slice_once(count: int, parts: int) -> None:
    ranges = [parse_range(f"{part}/{parts}")(count) for part in range(parts)]
    assert [n for first, stop in ranges for n in range(first, stop)] == list(range(count))


@pytest.mark.parametrize("text", ["", "3", "3:3", "4:2", "3/3", "1/0", "-1:2", "a:b", "0:2:4"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a range; write FIRST:STOP"):
        parse_range(text)


def test_slices_done_in_any_order_and_finished_are_the_plain_command(tiny_source: Path, tmp_path: Path) -> None:
    made, out = recipe("jsonl", tiny_source, **SETTINGS), tmp_path / "out"
    order = list(range(10))
    random.Random(3).shuffle(order)
    first = [prepare_range(made, out, f"{number}:{number + 1}") for number in order]
    assert [done.is_tokenized for done in first if isinstance(done, RangeDone)] == [False] * 9 + [True]
    random.Random(4).shuffle(order)
    second = [prepare_range(made, out, f"{number}:{number + 1}") for number in order]
    done = [d for d in [*first, *second] if isinstance(d, RangeDone)]
    assert (sum(d.scanned for d in done), sum(d.tokenized for d in done)) == (10, 10)
    finished = prepare(made, out, is_begun=True)
    assert (finished.scanned, finished.tokenized) == (0, 0)
    prepare(made, tmp_path / "clean")
    assert files_of(out) == files_of(tmp_path / "clean")
    late = prepare_range(made, out, "0/4")
    assert isinstance(late, Prepared) and late.was_finished


def test_finishing_does_what_is_missing_and_needs_a_beginning(tiny_source: Path, tmp_path: Path) -> None:
    made, out = recipe("jsonl", tiny_source, **SETTINGS), tmp_path / "out"
    with pytest.raises(DatasetError, match=r"so there is nothing to finish; check --out .*leave --finish out"):
        prepare(made, out, is_begun=True)
    prepare_range(made, out, "2:5")
    finished = prepare(made, out, is_begun=True)
    assert (finished.scanned, finished.tokenized) == (7, 10)


def test_ranges_share_the_folder_and_the_plain_command_does_not(tiny_source: Path, tmp_path: Path) -> None:
    made, out = recipe("jsonl", tiny_source, **SETTINGS), tmp_path / "out"
    with LocalStore(out).lock(shared=True):
        prepare_range(made, out, "0/2")
        with pytest.raises(DatasetError, match="being prepared by another process"):
            prepare(made, out)
    with LocalStore(out).lock():
        with pytest.raises(DatasetError, match="being prepared by another process"):
            prepare_range(made, out, "0/2")


def test_a_function_and_a_tokenizer_are_run_once_by_ranges_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"from pathlib import Path\ndef documents():\n    with Path({str(tmp_path / 'runs')!r}).open('a') as f: f.write('x')\n"
        "    yield from (f'document {i} of many ' * 3 for i in range(300))\n"
    )
    made = recipe("function", source__function=f"{tmp_path}/mine.py:documents", prepare__slice_documents=30)
    out = tmp_path / "out"
    for _ in range(2):
        threads = [threading.Thread(target=prepare_range, args=(made, out, f"{part}/3")) for part in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (tmp_path / "runs").read_text() == "x"
    finished = prepare(made, out, is_begun=True)
    assert (finished.scanned, finished.tokenized) == (0, 0)
    prepare(made, tmp_path / "clean")
    assert files_of(out) == files_of(tmp_path / "clean")


@pytest.mark.very_slow
def test_the_slurm_script(tmp_path: Path) -> None:
    made = recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", sentences(400)), prepare__slice_documents=40)
    (tmp_path / "made.toml").write_text(to_toml(made))
    out = tmp_path / "out"

    def task(number: int, *words: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "SLURM_ARRAY_TASK_ID": str(number),
            "SLURM_ARRAY_TASK_COUNT": "3",
            "SLURM_CPUS_PER_TASK": "1",
        }
        command = ["bash", str(SCRIPT), str(tmp_path / "made.toml"), str(out), "split.salt=slurm", *words]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    for _ in range(2):
        tasks = [task(number) for number in range(3)]
        printed = [t.communicate(timeout=300) for t in tasks]
        assert [t.returncode for t in tasks] == [0, 0, 0], printed
    assert all("this range is complete" in output for output, _ in printed)
    last = task(0, "--finish", "--json")
    output, error = last.communicate(timeout=300)
    assert last.returncode == 0, error
    assert json.loads(output)["was_finished"] is False
    salted = made.model_copy(update={"split": made.split.model_copy(update={"salt": "slurm"})})
    prepare(salted, tmp_path / "clean")
    assert files_of(out) == files_of(tmp_path / "clean")
