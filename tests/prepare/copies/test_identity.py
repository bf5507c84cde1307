"""Whether texts are equal as the plain definition says, and documents keep their side of the split."""

from hypothesis import given
from hypothesis import strategies as st
from tests.corpora import is_validation

from packtrain.config.recipe import SplitConfig
from packtrain.prepare.copies.equal import hash_content, normalise


def test_case_and_whitespace_do_not_make_another_document() -> None:
    assert hash_content("The  Cat\n sat") == hash_content("the cat sat ")
    assert hash_content("the cat sat") != hash_content("the cats at")
    assert hash_content("STRASSE") == hash_content("straße")


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_the_fast_path_is_the_plain_definition(text: str) -> None:
    assert normalise(text) == " ".join(text.casefold().split()).encode()


def test_share_is_what_was_asked_for_and_salts_differ() -> None:
    hashes = [hash_content(f"document {i}") for i in range(20_000)]
    first, second = SplitConfig(), SplitConfig(salt="another")
    sides = [is_validation(h, first) for h in hashes]
    # Four standard deviations of a binomial share of 0.1 over 20,000 are 0.0085.
    assert abs(sum(sides) / len(sides) - 0.1) < 0.0085
    both = sum(a and is_validation(h, second) for a, h in zip(sides, hashes, strict=True))
    assert abs(both / len(sides) - 0.01) < 0.003


@given(st.binary(min_size=16, max_size=16), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_share_holds_out_all_that_a_smaller_does(content: bytes, a: float, b: float) -> None:
    low, high = sorted((a, b))
    if is_validation(content, SplitConfig(validation_fraction=low)):
        assert is_validation(content, SplitConfig(validation_fraction=high))


@given(st.binary(min_size=16, max_size=16))
def test_no_share_holds_out_nothing(content: bytes) -> None:
    assert not is_validation(content, SplitConfig(validation_fraction=0.0))
