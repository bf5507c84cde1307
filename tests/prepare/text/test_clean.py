"""Whether each step of cleaning does what it says, and its fast path agrees with the plain definition."""

import unicodedata
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.config.recipe import CleanConfig
from packtrain.prepare.text.clean import Cleaner, replace_control_characters, trim

TEXTS = st.text(alphabet=st.one_of(st.sampled_from(" \t\n\r\x00\x0b\x85éé"), st.characters(codec="utf-8")), max_size=60)


def clean(text: str, **settings: object) -> tuple[str, str | None]:
    return Cleaner(CleanConfig.model_validate(settings))(text)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("page one\x0cpage two", "page one\npage two"),
        ("vt\x0bfs\x1cgs\x1drs\x1eNEL\x85end", "vt\nfs\ngs\nrs\nNEL\nend"),
        ("one\x00two\x1fthree\x7ffour\x80five", "one two three four five"),
        ("\x00a \x01b\x02\x03c\x04\nd\x05", "a b c\nd"),
        ("é\x00é\x0cé", "é é\né"),
        ("soft\u00adhyphen zero\u200bwidth", "soft\u00adhyphen zero\u200bwidth"),
        ("line\u2028separator paragraph\u2029separator", "line\u2028separator paragraph\u2029separator"),
        ("cafe\u0301", "café"),
        ("a  \nb\t\n\n\n\n\n\nc", "a\nb\n\n\nc"),
        ("\n\n  def f():\n    return 1\n\n", "def f():\n    return 1"),
        ("tab\tstays", "tab\tstays"),
    ],
)
def test_each_default_step(raw: str, cleaned: str) -> None:
    assert clean(raw) == (cleaned, None)


def test_every_step_can_be_turned_off() -> None:
    raw = " a\r\n\x00cafe\u0301 \n"
    off = {"normalize": "none", "control_characters": False, "line_ends": False, "whitespace": False}
    assert clean(raw, **off) == (raw, None)


@pytest.mark.parametrize(
    ("raw", "settings", "reason"),
    [
        ("", {}, "empty"),
        (" \n\t ", {}, "empty"),
        ("\x00\x01", {}, "empty"),
        ("  ", {"whitespace": False, "min_chars": 0}, "empty"),
        ("abc", {"min_chars": 4}, "too_short"),
        ("abcde", {"max_chars": 4}, "too_long"),
        ("abcd", {"min_chars": 4, "max_chars": 4}, None),
    ],
)
def test_reasons(raw: str, settings: dict[str, object], reason: str | None) -> None:
    assert clean(raw, **settings)[1] == reason


@given(TEXTS)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once, _ = clean(text)
    assert clean(once)[0] == once


WORDS = st.lists(
    st.one_of(st.text("ab\u0301é日", min_size=1, max_size=3), st.sampled_from([chr(c) for c in range(0xA1)])),
    max_size=20,
).map("".join)


def words(text: str, form: Literal["NFC", "NFKC"]) -> list[str]:
    """What stands between whitespace and control characters."""
    spaced = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    return unicodedata.normalize(form, spaced).split()


@given(WORDS, st.sampled_from(["NFC", "NFKC"]))
def test_no_words_are_joined_and_none_is_cut(text: str, form: Literal["NFC", "NFKC"]) -> None:
    once, _ = clean(text, normalize=form)
    assert words(once, form) == words(text, form)
    assert clean(once, normalize=form)[0] == once


@given(TEXTS)
def test_fast_paths_agree_with_the_plain_definition(text: str) -> None:
    replaced = replace_control_characters(text)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in replaced)
    assert replace_control_characters(replaced) == replaced
    if not any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in text):
        assert replaced == text
    lines = [line.rstrip(" \t") for line in trim(text).split("\n")]
    assert "\n".join(lines) == trim(text)
    assert "\n\n\n\n" not in trim(text)


def test_a_megabyte_of_spaces_is_not_quadratic() -> None:
    assert clean("a" + " " * 1_000_000 + "b \nc")[0].endswith("b\nc")


def test_mojibake_is_mended_on_request() -> None:
    pytest.importorskip("ftfy")
    assert clean("schÃ¶n", fix_encoding=True)[0] == "schön"
    assert clean("schÃ¶n")[0] == "schÃ¶n"
