"""The reading paths of docs/architecture.md name every file that runs, and give its lines to the nearest ten."""

import contextlib
import re
import sys
import threading
from pathlib import Path

import pytest
import torch

import packtrain
from packtrain.config.load import load_run_config
from packtrain.parallel.ranks import Ranks
from packtrain.prepare import run as prepare_run
from packtrain.train.preflight import open_training_data
from packtrain.train.setup import build_parts
from packtrain.train.step import train_step
from tests.corpora import recipe, sentences, write_jsonl

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
SOURCE = Path(packtrain.__file__).parent
STEP, DOCUMENT = "one optimizer step", "a document"


def section(name):
    return PAGE.read_text().partition(f"## Reading path: {name}\n")[2].partition("\n## ")[0]


def counted_files(name):
    """The files to read, with the lines that the page gives."""
    return {file: int(lines) for file, lines in re.findall(r"^\| `(\S+)` \| (\d+) \|", section(name), re.MULTILINE)}


def named_files(name):
    """Those, and the files that run but need not be read."""
    return {
        file for row in section(name).splitlines() if row.startswith("| `") for file in re.findall(r"`(\S+\.py)`", row)
    }


@contextlib.contextmanager
def files_that_run():
    """Yields a set that collects the files of packtrain in which a function is called, in this thread or in one that starts here."""
    files = set()

    def note(frame, event, _argument):
        name = frame.f_code.co_filename
        if event == "call" and frame.f_code.co_name != "<module>" and name.startswith(f"{SOURCE}/"):
            files.add(Path(name).relative_to(SOURCE).as_posix())

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


@pytest.mark.parametrize(("name", "most_files", "most_lines"), [(STEP, 14, 2200), (DOCUMENT, 16, 2600)])
def test_lines_are_counted_right(name, most_files, most_lines):
    given = counted_files(name)
    found = {file: len((SOURCE / file).read_text().splitlines()) for file in given}
    wrong = {file: lines for file, lines in found.items() if abs(given[file] - lines) > 10}
    assert wrong == {}, f"write these numbers of lines, to the nearest ten, into {PAGE.name}: {wrong}"
    assert len(found) <= most_files and sum(found.values()) <= most_lines


def test_a_step_runs_no_other_file(dataset):
    shape = ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=2", "num_attention_heads=2"]
    settings = [f"model.{value}" for value in [*shape, "num_key_value_heads=2", "vocab_size=512"]]
    settings += [f"data.dataset={dataset}", "data.seq_len=32", "train.global_batch_tokens=128", "train.steps=3"]
    config = load_run_config(
        "demo",
        [
            *settings,
            "train.micro_batch_size=2",
            "evaluate.every=0",
            "schedule.warmup_steps=1",
            "optim.name=adamw",
        ],
    )
    datasets = open_training_data(config.config)
    parts = build_parts(config.config, datasets, ranks=Ranks(), device=torch.device("cpu"), checkpoint=None)
    with files_that_run() as files, parts.loader as loader:
        train_step(
            parts.trained, parts.optimizer, next(loader), parts.placement, grad_clip=1.0, judge=parts.guard.judge
        )
    assert files - named_files(STEP) == set()


def test_a_document_runs_no_other_file(tmp_path, monkeypatch):
    class InThisThread:
        def run(self, tasks):
            for number, task in enumerate(tasks):
                yield number, task.function(*task.arguments, attempt=0)

    monkeypatch.setattr(prepare_run.passes, "open_workers", lambda *_: contextlib.nullcontext(InThisThread()))
    source = write_jsonl(tmp_path / "text.jsonl", sentences(80))
    with files_that_run() as files:
        prepare_run.prepare(recipe("jsonl", source), tmp_path / "dataset")
    assert files - named_files(DOCUMENT) == set()
