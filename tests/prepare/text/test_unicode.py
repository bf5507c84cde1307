"""Whether text of every Unicode category is prepared and decoded unchanged."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora import LLAMA2, sentences

from packtrain.config.recipe import CleanConfig
from packtrain.data.tokens.fast import FastEncoder
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.prepare.copies.equal import hash_content
from packtrain.prepare.steps.train_tokenizer import train_tokenizer
from packtrain.prepare.text.clean import Cleaner

CATEGORIES = (
    *("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"),
    *("Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cn"),
)
TOKENIZERS = {"own": train_tokenizer(sentences(50), 400)} | (
    {"llama2": load_tokenizer(LLAMA2)} if LLAMA2.is_dir() else {}
)
BYTES = {name: tokenizer.token_bytes() for name, tokenizer in TOKENIZERS.items()}
ENCODERS = {name: FastEncoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}
CLEANERS = [
    Cleaner(CleanConfig(normalize=form, control_characters=control, min_chars=0))
    for form, control in (("NFC", True), ("NFKC", True), ("none", False))
]


def of_category(category: str) -> st.SearchStrategy[str]:
    # Mixed with letters and blanks, so that marks have a base and words have borders.
    characters = st.characters(categories=[category])
    return st.text(alphabet=st.one_of(characters, characters, st.sampled_from("aé1 \n\t.▁Ġ<s>")), max_size=40)


@pytest.mark.parametrize("category", CATEGORIES)
def test_text_of_a_category_goes_through_and_comes_back(category: str) -> None:
    @settings(deadline=None, max_examples=25, database=None)
    @given(of_category(category))
    def check(raw: str) -> None:
        for clean in CLEANERS:
            text, reason = clean(raw)
            assert clean(text)[0] == text
            assert len(hash_content(text)) == 16
            if reason is not None:
                continue
            for name, tokenizer in TOKENIZERS.items():
                ids = tokenizer.encode(text)
                assert tokenizer.encode_batch([text]) == [ids]
                assert not tokenizer.control_ids & set(ids)
                # The sign for a space in Llama-2's vocabulary is a space to it.
                wanted = text.replace("▁", " ") if name == "llama2" else text
                assert tokenizer.decode(ids, skip_special=False) == wanted
                assert BYTES[name][ids].sum() == tokenizer.bytes_of_ids(text)
                (given,) = ENCODERS[name].encode_batch([text], [bytes(16)])
                assert (given if isinstance(given, list) else list(memoryview(given).cast("I"))) == ids

    check()


def test_the_categories_are_all_there_are() -> None:
    assert {unicodedata.category(chr(point)) for point in range(0x110000)} - {"Cs"} == set(CATEGORIES)
