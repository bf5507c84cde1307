"""A small prepared dataset, made by preparing it, and a tiny model for it."""

import json
import random
from pathlib import Path

import pytest

from packtrain.config.load import load_recipe
from packtrain.config.model import ModelConfig
from packtrain.data.format.shards import Dataset, open_dataset
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.model.init import build
from packtrain.model.llama import Llama
from packtrain.prepare.run import prepare

SEQ_LEN = 32
_WORDS = [
    "the ",
    "model",
    " reads a byte",
    "\n    ",
    "– été, naïve: ",
    "北京 ",
    "🙂",
    "(x, y) = f(1, 2); ",
    "return ",
    "None",
]


def texts() -> list[str]:
    """Documents of very different lengths, all different, with characters of one to four bytes."""
    chance = random.Random(3)
    return ["".join(chance.choices(_WORDS, k=length)) + f" #{i}" for i in range(120) for length in [1 + i * i % 97]]


def make_dataset(folder: Path, *settings: str) -> Dataset:
    source = folder / "texts.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    words = [
        "source.kind=jsonl",
        f"source.path={source}",
        "tokenizer.vocab_size=400",
        "prepare.workers=1",
        "split.validation_fraction=0.3",
        "clean.whitespace=false",
        *settings,
    ]
    prepare(load_recipe("stdlib", words).config, folder / "dataset")
    return open_dataset(folder / "dataset")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("held-out"))


@pytest.fixture(scope="session")
def tokenizer(dataset: Dataset) -> Tokenizer:
    return load_tokenizer(dataset.tokenizer_folder)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Llama:
    config = ModelConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=tokenizer.vocab_size,
        initializer_range=0.3,
    )
    return build(config, seed=1)
