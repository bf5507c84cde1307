"""Same bytes. `prepare` writes byte-identical files with any number of workers, and after any `kill -9`."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.corpora import files_of
from tests.promises.conftest import PREPARE, prepare


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(
    corpus: Path, prepared: Path, tmp_path: Path, workers: int
) -> None:
    prepare(corpus, tmp_path / "out", f"prepare.workers={workers}")
    assert files_of(tmp_path / "out") == files_of(prepared)


def test_a_killed_preparation_ends_with_the_same_bytes(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "packtrain",
        "prepare",
        "stdlib",
        *PREPARE,
        f"source.path={corpus}",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob(".work/tokens/*.json"))) < 2:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9, "it was done before it could be killed"
    assert not (out / "manifest.json").exists()
    prepare(corpus, out)
    assert files_of(out) == files_of(prepared)
