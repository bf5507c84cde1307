"""Streaming: the pieces shown, joined, are what decoding everything at once gives, and nothing shown is taken back."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.generate.text import StopStrings, StreamDecoder

PROMPTS = ["", "The", "the dog ", "a\n", "\n", "北", "a</s>"]

per_tokenizer = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pieces_of(tokenizer: Tokenizer, prompt_ids: list[int], new_ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer, prompt_ids)
    return [*(decoder.push(i) for i in new_ids), decoder.flush()]


@per_tokenizer
@given(data=st.data(), prompt=st.sampled_from(PROMPTS), with_bos=st.booleans())
def test_any_tokens_stream_to_their_full_decoding(tokenizer, data, prompt, with_bos):
    """Random ids: broken characters, byte runs and control tokens in every order."""
    new_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    prompt_ids = [tokenizer.bos_id] * with_bos + (tokenizer.encode(prompt) if prompt else [])
    before = tokenizer.decode(prompt_ids)
    full = tokenizer.decode(prompt_ids + new_ids)
    if not full.startswith(before):
        # Invalid bytes also turn bytes at the end of the prompt into replacement characters; then there is no remainder.
        return
    assert "".join(pieces_of(tokenizer, prompt_ids, new_ids)) == full[len(before) :]


@per_tokenizer
@given(text=st.text(max_size=40), prompt=st.sampled_from(PROMPTS))
def test_encoded_text_comes_back_whole_and_without_half_characters(tokenizer, text, prompt):
    if "�" in text:
        return
    prompt_ids = tokenizer.encode(prompt) if prompt else [tokenizer.bos_id]
    new_ids = tokenizer.encode(text) if text else []
    pieces = pieces_of(tokenizer, prompt_ids, new_ids)
    assert not any("�" in piece for piece in pieces)
    spaced = tokenizer.kind == "sentencepiece" and prompt and text
    assert "".join(pieces) == (" " + text if spaced else text)


def test_a_character_over_several_tokens_is_shown_when_it_is_whole(tokenizer):
    new_ids = tokenizer.encode("a🙈the")
    assert len(new_ids) >= 5
    pieces = pieces_of(tokenizer, tokenizer.encode("The"), new_ids)
    assert "" in pieces
    assert any("🙈" in piece for piece in pieces)
    assert not any("�" in piece for piece in pieces)


def test_an_unfinished_character_at_the_end_is_not_lost(tokenizer):
    unfinished = tokenizer.encode("a🙈")[:-1]
    *_, last = pieces_of(tokenizer, tokenizer.encode("a"), unfinished)
    assert set(last) == {"�"}


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(alphabet="abc", max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=6),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text, stops, cuts):
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    matcher, shown, stopped = StopStrings(stops), "", False
    for start, end in itertools.pairwise(borders):
        piece, stopped = matcher.push(text[start:end])
        shown += piece
        assert expected.startswith(shown), "nothing of a stop string is ever shown"
        if stopped:
            break
    shown += matcher.flush()
    assert (shown, stopped) == (expected, bool(ends))


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [(["a", "b", "c"], ["a", "b", "c"]), (["x", "\n", "\n"], ["x", "", ""]), (["x", "\n", "y"], ["x", "", "\ny"])],
)
def test_only_what_may_begin_a_stop_string_waits(pieces, shown):
    matcher = StopStrings(["\n\n"])
    assert [matcher.push(piece)[0] for piece in pieces] == shown
