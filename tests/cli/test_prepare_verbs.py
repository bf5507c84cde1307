"""`prepare`, `tokenizer` and `verify` as a user types them: what they print, write and refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.corpora import sentences, write_jsonl


def packtrain(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "packtrain", *map(str, words)]
    environment = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verbs")
    write_jsonl(root / "mine.jsonl", [*sentences(100), *sentences(3)])
    return root


SETTINGS = ("source.path=mine.jsonl", "tokenizer.vocab_size=300", "prepare.workers=1")


@pytest.mark.slow
def test_prepare_then_verify(folder: Path) -> None:
    first = packtrain("prepare", "jsonl", *SETTINGS, "--out", "data", cwd=folder)
    assert first.returncode == 0, first.stderr
    assert "bytes per token; 2.91% duplicates; a random 10% split would have had" in first.stdout
    assert "in training as well, this one has none" in " ".join(first.stdout.split())
    assert "\nnext: " in first.stdout
    assert "packtrain train demo data.dataset=data train.steps=11 --run runs/data\n" in first.stdout
    again = packtrain("prepare", "jsonl", *SETTINGS, "--out", "data", "--json", cwd=folder)
    told = json.loads(again.stdout)
    assert told["was_finished"]
    assert told["ledger"]["documents"]["in"] == 103
    verified = packtrain("verify", "data", "--rebuild", 1, cwd=folder)
    assert verified.returncode == 0, verified.stderr
    assert "data is whole" in verified.stdout
    assert "made again from the source, byte for byte: slice 00000 (mine.jsonl, rows 0 to 102)" in verified.stdout


@pytest.mark.slow
def test_a_dry_run_estimates_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    shown = packtrain("prepare", "jsonl", *SETTINGS, "--dry-run", "--out", "not/yet", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "103 rows" in shown.stdout
    assert "2.91% of documents" in shown.stdout
    assert "free there" in shown.stdout
    assert "the time is measured" in shown.stderr
    told = json.loads(packtrain("prepare", "jsonl", *SETTINGS, "--dry-run", "--json", cwd=folder).stdout)
    assert told["sample"]["is_whole"]
    assert told["documents"]["train"] + told["documents"]["validation"] == 100
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_tokenizer_then_prepare_with_it(folder: Path) -> None:
    trained = packtrain("tokenizer", "jsonl", *SETTINGS, "--out", "own", "--json", cwd=folder)
    assert json.loads(trained.stdout)["vocab_size"] == 300, trained.stderr
    words = ("source.path=mine.jsonl", "tokenizer.name=own", "tokenizer.vocab_size=", "prepare.workers=1")
    done = packtrain("prepare", "jsonl", *words, "--out", "with-own", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ledger"]["documents"]["duplicates"] == 3


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("prepare", "jsonl", "--out", "x"), 2, "source.kind=jsonl needs source.path; write source.path=..."),
        (("prepare", "text-folder", "--out", "x"), 2, "source.kind=text needs source.path; write source.path=..."),
        (("prepare", "jsonl", *SETTINGS), 2, "write --out data/NAME"),
        (("prepare", "jsonk", "--out", "x"), 2, "did you mean jsonl?"),
        (("prepare", "jsonl", "source.path=none.jsonl", "--out", "x"), 2, "source.path=none.jsonl does not exist"),
        (("prepare", "jsonl", "source.path=mine.jsonl", "source.separator=x", "--out", "x"), 2, "has no effect with"),
        (("tokenizer", "fineweb-edu-10bt", "--out", "x"), 2, "tokenizer.vocab_size=32000"),
        (("verify", "mine.jsonl"), 2, "is not a prepared dataset"),
        (("verify", "data", "--source", "x"), 2, "--source x is used only with --rebuild"),
    ],
)
def test_mistakes_end_in_one_sentence(folder: Path, words: tuple[str, ...], code: int, sentence: str) -> None:
    done = packtrain(*words, cwd=folder)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "x").exists()
