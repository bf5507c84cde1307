"""What every room's tests may need: a tiny dataset, prepared once."""

import json
import os
import random
import signal

import pytest
from hypothesis import settings

# The suite draws the same examples each time, so that a red run is about the change. `make fuzz` draws new ones, and far more.
settings.register_profile("repeatable", max_examples=40, derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=3_000, deadline=None, print_blob=True)
settings.load_profile("repeatable")

# A shell has what it starts in the background ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = (
    *("the", "a", "of", "packed", "row", "token", "loss", "step", "batch", "layer"),
    *("head", "model", "train", "data", "text", "word", "seed", "state", "file", "next"),
)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Folder of a prepared dataset: 400 documents of a few words in a simple grammar, a vocabulary of 512."""
    from packtrain.config.load import load_recipe
    from packtrain.prepare.run import prepare

    folder = tmp_path_factory.mktemp("dataset")
    draw = random.Random(0)
    with (folder / "text.jsonl").open("w") as lines:
        for number in range(400):
            words = [draw.choice(WORDS) for _ in range(draw.randint(3, 60))]
            lines.write(json.dumps({"id": f"doc-{number}", "text": " ".join([*words, str(number)])}) + "\n")
    settings = [
        "source.kind=jsonl",
        f"source.path={folder / 'text.jsonl'}",
        "tokenizer.vocab_size=512",
        "prepare.workers=1",
    ]
    prepare(load_recipe("stdlib", settings).config, folder / "prepared")
    return folder / "prepared"


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory):
    """A jsonl file of 200 documents, five of them copies of the first."""
    from tests.corpora import sentences, write_jsonl

    texts = sentences(195)
    return write_jsonl(tmp_path_factory.mktemp("source") / "tiny.jsonl", texts + [texts[0].upper()] * 5)


@pytest.fixture(scope="session")
def tiny_dataset(tiny_source, tmp_path_factory):
    """A prepared dataset over `tiny_source`, in shards of at most 50 documents; not to be changed."""
    from packtrain.prepare.run import prepare
    from tests.corpora import recipe

    out = tmp_path_factory.mktemp("dataset") / "tiny"
    prepare(recipe("jsonl", tiny_source, source__id_column="id", prepare__slice_documents=50), out)
    return out
