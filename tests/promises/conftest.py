"""What the promises are tried on: a tiny corpus with copies in it, and a tiny run, both made with the public commands."""

import json
import random
from pathlib import Path

import pytest
from tests.command_line import packtrain
from tests.corpora import sentences, write_jsonl
from tests.train.conftest import TINY

PREPARE = ("source.kind=jsonl", "tokenizer.vocab_size=512", "prepare.slice_documents=25", "prepare.workers=1")


def prepare(source: Path, out: Path, *settings: str) -> dict:
    """`packtrain prepare` of a jsonl file; gives its JSON."""
    done = packtrain("prepare", "stdlib", *PREPARE, f"source.path={source}", *settings, "--out", out, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def train(dataset: Path, run: Path, *settings: str) -> dict:
    """`packtrain train` for ten tiny steps; gives its JSON."""
    done = packtrain(
        "train", "demo", *TINY, f"data.dataset={dataset}", *settings, "--run-dir", run, "--resume", "--json"
    )
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 documents in random order: every tenth is another's copy in other case and spacing, and two have no text."""
    texts = sentences(178)
    texts += [f"  {text.upper()}\n" for text in texts[::9]] + ["", " \n"]
    random.Random(0).shuffle(texts)
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "texts.jsonl", texts)


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as a prepared dataset; not to be changed."""
    out = tmp_path_factory.mktemp("promises") / "prepared"
    prepare(corpus, out)
    return out


@pytest.fixture(scope="session")
def run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps on that dataset; not to be changed."""
    folder = tmp_path_factory.mktemp("promises") / "run"
    train(prepared, folder)
    return folder
