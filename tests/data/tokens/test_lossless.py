"""A tokenizer whose parts prove that it loses nothing gives any text back, and one that loses text is not proven."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpora import LLAMA2, sentences
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from packtrain.data.tokens.lossless import RoundTrip
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.prepare.steps.train_tokenizer import train_tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SIGN = "▁"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNDO = [decoders.Replace(SIGN, " "), decoders.ByteFallback(), decoders.Fuse()]
FALLBACK = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SIGN, *LETTERS, SIGN + "t"]

Change = Callable[[RawTokenizer], object]


def byte_level(alphabet: list[str] = BYTES, **options: Any) -> RawTokenizer:
    raw = RawTokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, [], **options))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<s>", "</s>"])
    return raw


def byte_fallback(words: list[str] = FALLBACK, strip: bool = True, **options: Any) -> RawTokenizer:
    vocab = {word: i for i, word in enumerate(words)}
    merges = [(SIGN, "t")] if SIGN in vocab and "t" in vocab else []
    raw = RawTokenizer(models.BPE(vocab, merges, unk_token="<unk>", **{"byte_fallback": True, **options}))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend(SIGN), normalizers.Replace(" ", SIGN)])
    raw.decoder = decoders.Sequence([*UNDO, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    return raw


def word_level() -> RawTokenizer:
    raw = RawTokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return raw


def changed(raw: RawTokenizer, **parts: Any) -> RawTokenizer:
    for name, part in parts.items():
        setattr(raw, name, part)
    return raw


def added(raw: RawTokenizer, token: AddedToken) -> RawTokenizer:
    raw.add_tokens([token])
    return raw


def sequence(*parts: Any) -> Any:
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PROVEN = {
    "byte-level": byte_level,
    "Qwen's": lambda: changed(byte_level(), normalizer=normalizers.NFC()),
    "Llama-3's": lambda: changed(
        byte_level(ignore_merges=True), pre_tokenizer=sequence(pre_tokenizers.Split(" ", "merged_with_next"))
    ),
    "digits": lambda: changed(byte_level(), pre_tokenizer=sequence(pre_tokenizers.Digits(True))),
    "added": lambda: added(added(byte_level(), AddedToken("<think>")), AddedToken("two words")),
    "added signs": lambda: added(byte_level(), AddedToken("日本")),
    "special that swallows": lambda: byte_level_with_greedy_special(),
    "truncated and padded": lambda: truncated(byte_level()),
    "Llama-2's": byte_fallback,
    "Llama-2's of late": lambda: changed(
        byte_fallback(), normalizer=None, pre_tokenizer=pre_tokenizers.Metaspace(SIGN, "first", split=False)
    ),
    "Gemma's": lambda: changed(
        byte_fallback(strip=False),
        normalizer=normalizers.Replace(" ", SIGN),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
    ),
}
UNPROVEN = {
    "no byte-level alphabet": lambda: byte_level([*LETTERS, "Ġ"]),
    "lower case": lambda: changed(byte_level(), normalizer=normalizers.Lowercase()),
    "accents": lambda: changed(
        byte_level(), normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    ),
    "NFKC": lambda: changed(byte_level(), normalizer=normalizers.NFKC()),
    "strip": lambda: changed(byte_level(), normalizer=normalizers.Strip()),
    "no whitespace": lambda: changed(byte_level(), pre_tokenizer=sequence(pre_tokenizers.WhitespaceSplit())),
    "removed": lambda: changed(byte_level(), pre_tokenizer=sequence(pre_tokenizers.Split(" ", "removed"))),
    "no decoder": lambda: changed(byte_level(), decoder=None),
    "lstrip": lambda: added(byte_level(), AddedToken("<x>", lstrip=True)),
    "rstrip": lambda: added(byte_level(), AddedToken("<x>", rstrip=True)),
    "added bytes": lambda: added(byte_level(), AddedToken("é!")),
    "no fallback": lambda: byte_fallback(byte_fallback=False),
    "a byte less": lambda: byte_fallback([word for word in FALLBACK if word != "<0xC3>"]),
    "no sign": lambda: byte_fallback([word for word in FALLBACK if SIGN not in word]),
    "added to Llama-2's": lambda: added(byte_fallback(), AddedToken("<x>")),
    "Llama-2's without strip": lambda: byte_fallback(strip=False),
    "words": word_level,
    "Unigram": lambda: RawTokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False)),
}
# Not proven, but they lose nothing of this text.
HARMLESS = {"added to Llama-2's", "Llama-2's without strip"}
AWKWARD = "CAFÉ <x> naïve  é! 日本\t😀 \n<0x41> ﬁ e\u0301 "


def byte_level_with_greedy_special() -> RawTokenizer:
    raw = byte_level()
    raw.add_special_tokens([AddedToken("<x>", lstrip=True, rstrip=True)])
    return raw


def truncated(raw: RawTokenizer) -> RawTokenizer:
    raw.enable_truncation(3)
    raw.enable_padding(length=9)
    return raw


@cache
def opened(name: str) -> tuple[Tokenizer, RoundTrip]:
    tokenizer = Tokenizer((PROVEN | UNPROVEN)[name]().to_str(), {}, "the test")
    return tokenizer, RoundTrip(tokenizer)


def comes_back(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode_batch([text])[0], skip_special=False)


@given(
    st.sampled_from(sorted(PROVEN)),
    st.text(st.one_of(st.sampled_from(" a\n\té日▁<s>x0x41!\u0301"), st.characters(codec="utf-8"))),
)
def test_what_is_proven_gives_any_text_back(name: str, text: str) -> None:
    tokenizer, round_trip = opened(name)
    assert round_trip.flaw is None
    back = comes_back(tokenizer, text)
    loss = round_trip.find_loss(text, tokenizer.encode(text))
    if back.removeprefix(" ") == text.removeprefix(" "):
        assert loss is None
    else:
        # The two exceptions, both found by looking at the text.
        assert loss is not None
        assert SIGN in text if name in ("Llama-2's", "Llama-2's of late", "Gemma's") else name == "Qwen's"


@pytest.mark.parametrize("name", ["byte-level", "Llama-3's", "added", "truncated and padded"])
def test_what_cannot_lose_anything_is_not_looked_at(name: str) -> None:
    assert opened(name)[1].is_certain


def test_a_trained_tokenizer_is_proven() -> None:
    assert RoundTrip(train_tokenizer(sentences(20), 300)).is_certain


@pytest.mark.skipif(not LLAMA2.is_dir(), reason="the Llama-2 tokenizer is not on this machine")
def test_llama2_is_proven() -> None:
    assert RoundTrip(load_tokenizer(LLAMA2)).flaw is None


@pytest.mark.parametrize("name", sorted(UNPROVEN))
def test_what_loses_text_is_not_proven_and_the_text_is_found(name: str) -> None:
    tokenizer, round_trip = opened(name)
    assert round_trip.flaw is not None
    loss = round_trip.find_loss(AWKWARD, tokenizer.encode(AWKWARD))
    assert (loss is None) == (name in HARMLESS), comes_back(tokenizer, AWKWARD)
    assert loss is None or not loss.is_space_sign


@pytest.mark.parametrize(
    ("name", "text", "lost"),
    [
        ("no byte-level alphabet", "café naïve 日本 plain", 2 + 2 + 6),
        ("lower case", "A Café", 2),
        ("words", "the dog", len("dog") + 1),
        ("words", "the cat", None),
        ("lower case", "a café", None),
        ("no fallback", "the tea", None),
        ("no fallback", "tée 日", 2 + 3),
        ("Llama-2's", "a ▁ b", 3),
        ("Qwen's", "e\u0301", 3),
    ],
)
def test_lost_bytes_are_counted(name: str, text: str, lost: int | None) -> None:
    tokenizer, round_trip = opened(name)
    loss = round_trip.find_loss(text, tokenizer.encode(text))
    assert (None if loss is None else loss.utf8_bytes) == lost


def test_texts_that_look_the_same_are_shown_by_their_codes() -> None:
    tokenizer, round_trip = opened("Qwen's")
    loss = round_trip.find_loss("e\u0301", tokenizer.encode("e\u0301"))
    assert loss is not None and loss.example == r"'e\u0301' comes back as '\xe9'"


def test_a_tokenizers_own_space_before_a_text_is_no_loss() -> None:
    raw = changed(byte_level(), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))
    tokenizer = Tokenizer(raw.to_str(), {}, "the test")
    assert comes_back(tokenizer, "a b") == " a b"
    assert RoundTrip(tokenizer).find_loss("a b", tokenizer.encode("a b")) is None


def test_two_tokens_with_one_id_are_not_proven() -> None:
    spec = json.loads(byte_level().to_str())
    spec["model"]["vocab"]["a"] = spec["model"]["vocab"]["b"]
    assert RoundTrip(Tokenizer(json.dumps(spec), {}, "the test")).flaw == "some of its tokens share an id"
