"""Decides which files try to take all memory, and whether a preparation of each stays under one gigabyte."""

import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from benchmarks.attack.outcome import LOST, Ended, Trial, run_apart

MOST_BYTES = 10**9
TIMEOUT_S = 1_800.0
_BLOCK = 1 << 20
_GB = 1_000


def _write_zst(path: Path, blocks: Iterator[bytes]) -> None:
    with path.open("wb") as raw, zstandard.ZstdCompressor(level=3).stream_writer(raw) as out:
        for block in blocks:
            out.write(block)


def _write_gz(path: Path, blocks: Iterator[bytes]) -> None:
    with gzip.open(path, "wb", compresslevel=1) as out:
        for block in blocks:
            out.write(block)


def _write(path: Path, blocks: Iterator[bytes]) -> None:
    with path.open("wb") as out:
        for block in blocks:
            out.write(block)


def _record(
    megabytes: int, before: bytes = b'{"text": "one"}\n{"text": "', after: bytes = b'"}\n{"text": "two"}\n'
) -> Iterator[bytes]:
    yield before
    for _ in range(megabytes):
        yield b"word " * (_BLOCK // 5)
    yield after


def _repeat(block: bytes, megabytes: int) -> Iterator[bytes]:
    yield b'{"text": "one"}\n'
    for _ in range(megabytes):
        yield block * (_BLOCK // len(block))
    yield b'\n{"text": "two"}\n'


def _write_dictionary(path: Path) -> None:
    """A file of a few megabytes, whose one value of 8 MB fills 10 GB of rows."""
    values = pa.array(["word " * (8 * _BLOCK // 5)])
    indices = pa.array([0] * 1_250, pa.int32())
    pq.write_table(pa.table({"text": pa.DictionaryArray.from_arrays(indices, values)}), path, compression="zstd")


def _write_large_value(path: Path) -> None:
    table = pa.table({"text": pa.array(["one", "word " * (300 * _BLOCK // 5), "two"], pa.large_string())})
    pq.write_table(table, path, compression="zstd")


def _write_nesting(path: Path) -> None:
    path.write_bytes(b'{"text": "one"}\n' + b'{"a":' * (4 * _BLOCK) + b"\n" + b'{"text": "two"}\n')


BOMBS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "10 GB of line ends in a .zst": ("jsonl", "a.jsonl.zst", lambda p: _write_zst(p, _repeat(b"\n", 10 * _GB))),
    "10 GB of one letter in a .zst": ("jsonl", "a.jsonl.zst", lambda p: _write_zst(p, _repeat(b"a", 10 * _GB))),
    "2 GB of line ends in a .gz": ("jsonl", "a.jsonl.gz", lambda p: _write_gz(p, _repeat(b"\n", 2 * _GB))),
    "a record of 200 MB": ("jsonl", "a.jsonl", lambda p: _write(p, _record(200))),
    "a record of 800 MB": ("jsonl", "a.jsonl", lambda p: _write(p, _record(800))),
    "a record of 3 GB in a .zst": ("jsonl", "a.jsonl.zst", lambda p: _write_zst(p, _record(3 * _GB))),
    "a quote that never closes, 1 GB": (
        "csv",
        "a.csv.zst",
        lambda p: _write_zst(p, _record(_GB, b'text,id\n"', b"\n")),
    ),
    "a csv header of 1 GB": ("csv", "a.csv.zst", lambda p: _write_zst(p, _record(_GB, b"text,", b"\none,1\n"))),
    "a text file of 400 MB": ("text", "a.txt", lambda p: _write(p, _record(400, b"", b""))),
    "a text file of 2 GB in a .gz": ("text", "a.txt.gz", lambda p: _write_gz(p, _record(2 * _GB, b"", b""))),
    "a JSON array of one value of 500 MB": (
        "jsonl",
        "a.json",
        lambda p: _write(p, _record(500, b'[{"text": "', b'"}]')),
    ),
    "brackets nested four million deep": ("jsonl", "a.jsonl", _write_nesting),
    "10 GB of parquet rows from one value": ("parquet", "a.parquet", _write_dictionary),
    "a parquet value of 300 MB": ("parquet", "a.parquet", _write_large_value),
}


def attack_with_bomb(name: str) -> Trial:
    """Prepare a bomb with one worker. It must be refused, or counted as a bad row, in less than a gigabyte."""
    kind, file, write = BOMBS[name]
    with tempfile.TemporaryDirectory(prefix="packtrain-attack-") as work:
        path = Path(work) / file
        # Apart from this process, whose own peak would count as that of the processes that it starts.
        run_apart(lambda: write(path), Path(work), TIMEOUT_S)
        started = time.monotonic()
        ended = _prepare(kind, path, Path(work))
        seconds = time.monotonic() - started
    outcome = ended.judge(lambda: True)
    if ended.peak_bytes > MOST_BYTES:
        outcome = LOST
    detail = f"{name}: exit {ended.code} in {seconds:.0f} s, peak {ended.peak_bytes / 1e6:.0f} MB {ended.err[-400:]}"
    return Trial("memory bomb", name, outcome, detail)


def _prepare(kind: str, path: Path, folder: Path) -> Ended:
    words = ("prepare", "stdlib", f"source.kind={kind}", f"source.path={path}", "source.max_bad_fraction=1")
    options = (
        "tokenizer.vocab_size=300",
        "split.validation_fraction=0",
        "prepare.workers=1",
        "--out",
        str(folder / "ds"),
    )
    out, err = folder / "stdout", folder / "stderr"
    with out.open("wb") as to_out, err.open("wb") as to_err:
        process = subprocess.Popen([sys.executable, "-m", "packtrain", *words, *options], stdout=to_out, stderr=to_err)
        code, peak = _wait(process.pid)
        process.returncode = code if code is not None else -9
    return Ended(code, out.read_text(errors="replace"), err.read_text(errors="replace"), peak)


def _wait(child: int) -> tuple[int | None, int]:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        time.sleep(0.1)
    os.kill(child, 9)
    _, _, usage = os.wait4(child, 0)
    return None, usage.ru_maxrss * 1024
