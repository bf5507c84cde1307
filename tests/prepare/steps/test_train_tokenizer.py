"""A tokenizer of our own is the same however long texts are cut for its training, and words of kilobytes teach it nothing."""

import random

import pytest
from tests.corpora import sentences

from packtrain.prepare.steps import train_tokenizer as trained


def texts() -> list[str]:
    draw = random.Random(0)
    spaces = [" ", " ", " ", "  ", "\n", " \n ", "\t", ", "]
    return ["".join(word + draw.choice(spaces) for word in " ".join(sentences(30)).split(" ")) for _ in range(3)]


def test_long_texts_are_cut_without_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained.train_tokenizer(texts(), 400)
    monkeypatch.setattr(trained, "PIECE_CHARS", 20)
    assert trained.train_tokenizer(texts(), 400).plain_json() == whole.plain_json()


def test_a_word_of_kilobytes_is_left_out() -> None:
    plain = "the words of a text " * 20
    long = f"the words of a text {'x' * 1025} " + "the words of a text " * 19
    assert trained.train_tokenizer([long], 300).plain_json() == trained.train_tokenizer([plain], 300).plain_json()
