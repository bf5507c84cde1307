"""A tokenizer of our own is the same however long texts are cut for its training, and words of kilobytes teach it nothing."""

import random
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpora import sentences
from tokenizers import pre_tokenizers

from packtrain.prepare.steps import train_tokenizer as trained


def texts() -> list[str]:
    draw = random.Random(0)
    spaces = [" ", " ", " ", "  ", "\n", " \n ", "\t", ", "]
    return ["".join(word + draw.choice(spaces) for word in " ".join(sentences(30)).split(" ")) for _ in range(3)]


def test_long_texts_are_cut_without_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained.train_tokenizer(texts(), 400)
    monkeypatch.setattr(trained, "PIECE_CHARS", 20)
    assert trained.train_tokenizer(texts(), 400).plain_json() == whole.plain_json()


@given(st.text(alphabet="ab 's\n\t_-,。，字é1²Ⅷ\u0301\u00a0", max_size=60))
def test_no_word_is_cut(text: str) -> None:
    """Of any script, with or without spaces."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str
    with mock.patch.object(trained, "PIECE_CHARS", 2):
        pieces = list(trained.split_long_text(text))
    assert [word for piece in pieces for word, _ in split(piece)] == [word for word, _ in split(text)]


@pytest.mark.parametrize(
    "text", ["emma\nolivia\nava\n" * 300, "从前有一座山，山里有一座庙。" * 300, '{"key":[1,2]},' * 300]
)
def test_text_without_spaces_is_learned_from(text: str) -> None:
    """It is no word of kilobytes: lines, other scripts, and data have borders of their own."""
    trained_on = trained.train_tokenizer([text], 262)
    assert trained_on.vocab_size == 262
    assert len(trained_on.encode(text)) < 0.8 * len(text.encode())


def test_a_word_of_kilobytes_is_left_out() -> None:
    plain = "the words of a text " * 20
    long = f"the words of a text {'x' * 1025} " + "the words of a text " * 19
    assert trained.train_tokenizer([long], 300).plain_json() == trained.train_tokenizer([plain], 300).plain_json()
