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


@pytest.mark.slow
def test_a_preparation_killed_again_and_again_ends_with_the_same_bytes(
    corpus: Path, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["prepare", "stdlib", *PREPARE, f"source.path={corpus}", "--out", str(out)]
    for results, count in (("scan", 1), ("scan", 6), ("tokens", 1), ("tokens", 4)):
        process = subprocess.Popen([sys.executable, "-m", "packtrain", *words], stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob(f".work/{results}/*"))) < count:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -9, "it was done before it could be killed"
        assert not (out / "manifest.json").exists()
    prepare(corpus, out)
    assert files_of(out) == files_of(prepared)
