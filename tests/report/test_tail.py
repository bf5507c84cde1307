"""A log is read line by line once, whatever was torn, appended or rewritten meanwhile."""

import json
from pathlib import Path

from packtrain.report.tail import LogReader


def line(step: int) -> bytes:
    return json.dumps({"step": step, "loss": 1.0}).encode() + b"\n"


def steps(reader: LogReader, path: Path) -> tuple[list[int], list[str]]:
    missing: list[str] = []
    return reader.read_metrics(path, missing).training.column("step").tolist(), missing


def test_only_what_was_appended_is_read_again(tmp_path: Path) -> None:
    path, reader = tmp_path / "metrics.jsonl", LogReader()
    path.write_bytes(b"".join(map(line, range(5000))))
    assert steps(reader, path) == (list(range(5000)), [])
    before = reader.num_bytes_read
    assert before == path.stat().st_size
    with path.open("ab") as file:
        file.write(line(5000) + b'{"step": 5001, "lo')
    # The torn end is a line that is being written.
    assert steps(reader, path) == (list(range(5001)), [])
    with path.open("ab") as file:
        file.write(b'ss": 2.0}')
    assert steps(reader, path) == (list(range(5002)), [])
    assert reader.num_bytes_read - before < 3 * len(line(5001)) and reader.num_restarts == 0


def test_a_log_that_was_cut_or_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    path, reader = tmp_path / "metrics.jsonl", LogReader()
    path.write_bytes(b"".join(map(line, range(10))))
    assert steps(reader, path)[0] == list(range(10))
    # A resumed run goes back to a checkpoint and writes the later lines again.
    (tmp_path / "new").write_bytes(b"".join(map(line, [*range(6), 60, 70, 80, 90, 100])))
    (tmp_path / "new").replace(path)
    assert steps(reader, path)[0] == [*range(6), 60, 70, 80, 90, 100]
    path.write_bytes(line(1))
    assert steps(reader, path)[0] == [1]
    # The same length, the same file, other lines.
    path.write_bytes(line(2))
    assert steps(reader, path)[0] == [2]
    path.unlink()
    assert steps(reader, path) == ([], [])


def test_broken_lines_are_counted_each_once_and_the_others_kept(tmp_path: Path) -> None:
    path, reader = tmp_path / "metrics.jsonl", LogReader()
    rubbish = [b"\xff\xfe\n", b'{"step": 1, "loss\n', b"7\n", b"\n", b'{"a": 1}, {"step": 2}\n', b'{"step": "x"}\n']
    path.write_bytes(line(0) + b"".join(rubbish) + line(3))
    for _ in range(2):
        assert steps(reader, path) == ([0, 3], ["Left out 5 unreadable lines of metrics.jsonl."])


def test_what_is_not_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    found, missing = steps(LogReader(), tmp_path / "metrics.jsonl")
    assert found == [] and "not a plain file" in missing[0]
