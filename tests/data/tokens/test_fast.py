"""The fast library gives the ids of `tokenizers`, and one that errs is found out."""

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora import LLAMA2, files_of, recipe, sentences, write_jsonl
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models

from packtrain.data.format.manifest import parse_manifest
from packtrain.data.tokens import fast
from packtrain.data.tokens.fast import DifferentIdsError, FastEncoder
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import TokenizerError
from packtrain.prepare.run import prepare
from packtrain.prepare.steps.train_tokenizer import BOS, EOS, train_tokenizer

KINDS = [
    "own",
    pytest.param("llama2", marks=pytest.mark.skipif(not LLAMA2.is_dir(), reason="it is not on this machine")),
]
HARD = [
    f"a page that says {BOS} and {EOS} and <s>, </s>, <unk>",
    "naïve café, 日本語のテキスト, 🤖👨‍👩‍👧, \u200b\ufeff and \U0010ffff",
    "x" * 3000,
    " \n" * 500 + "end",
    "'s 't 're 12345 67 \t\t  tab",
    "<0x0A> and ▁ and Ġ",
]


def tokenizer_of(kind: str) -> Tokenizer:
    if kind not in _OPEN:
        _OPEN[kind] = train_tokenizer(sentences(200), 600) if kind == "own" else load_tokenizer(LLAMA2)
    return _OPEN[kind]


_OPEN: dict[str, Tokenizer] = {}


def ids_of(encoded: list[list[int] | memoryview]) -> list[list[int]]:
    return [list(ids if isinstance(ids, list) else memoryview(ids).cast("B").cast("I")) for ids in encoded]


def contents(texts: list[str], first: int = 255) -> list[bytes]:
    return [bytes([first]) * 16] * len(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_tokenizers(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    texts = sentences(300) + HARD
    encoder = FastEncoder(tokenizer)
    assert ids_of(encoder.encode_batch(texts, contents(texts))) == tokenizer.encode_batch(texts)
    assert encoder.counts["tokenizers"] == 1
    assert encoder.counts["fast"] == len(texts) - 1
    assert encoder.encode_batch([], []) == []


@pytest.mark.parametrize("every", [64, pytest.param(1, marks=pytest.mark.very_slow)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_each_character_is_the_same(kind: str, every: int) -> None:
    tokenizer = tokenizer_of(kind)
    starts = [*range(0, 0xD800, 256), *range(0xE000, 0x11_0000, 256)][::every]
    texts = ["".join(map(chr, range(start, start + 256))) for start in starts]
    encoder = FastEncoder(tokenizer)
    # Each character is new, so that the text around it is looked at as well.
    assert ids_of(encoder.encode_batch(texts, contents(texts, 0))) == tokenizer.encode_batch(texts)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(["own", "llama2"] if LLAMA2.is_dir() else ["own"]), st.lists(st.text(max_size=80), max_size=5))
@pytest.mark.slow
def test_any_text_is_the_same(kind: str, texts: list[str]) -> None:
    tokenizer = tokenizer_of(kind)
    assert ids_of(FastEncoder(tokenizer).encode_batch(texts, contents(texts))) == tokenizer.encode_batch(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_control_token_never_reaches_the_fast_library(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    encoder = FastEncoder(tokenizer)
    literal = tokenizer.eos_token
    assert literal is not None
    (ids,) = ids_of(encoder.encode_batch([f"before{literal}after"], contents([""])))
    assert encoder.counts == {"fast": 0, "tokenizers": 1, "checked": 0}
    assert not tokenizer.control_ids & set(ids)


def other_merges(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with the same vocabulary that merges in another order: other ids, which stand for the same bytes."""
    import json

    spec = json.loads(tokenizer.raw.to_str())
    spec["model"]["merges"] = spec["model"]["merges"][::-1]
    return Tokenizer(json.dumps(spec), {}, "the test")


@pytest.fixture
def erring_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library, which errs because it is given another tokenizer."""
    opened = fast._open(other_merges(tokenizer_of("own")))
    monkeypatch.setattr(fast, "_open", lambda _: opened)


@pytest.mark.usefixtures("erring_library")
def test_a_sampled_document_shows_the_error() -> None:
    encoder = FastEncoder(tokenizer_of("own"))
    with pytest.raises(DifferentIdsError, match="gave other ids for"):
        encoder.encode_batch(sentences(3), contents(sentences(3), 0))


@pytest.mark.usefixtures("erring_library")
def test_the_longest_document_shows_the_error_unsampled() -> None:
    with pytest.raises(DifferentIdsError):
        FastEncoder(tokenizer_of("own")).encode_batch(sentences(3), contents(sentences(3)))


@pytest.mark.usefixtures("erring_library")
def test_the_slice_is_done_again_and_its_bytes_are_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", sentences(80))
    tokenizer_of("own").save(tmp_path / "tokenizer")
    settings = {"tokenizer__name": str(tmp_path / "tokenizer"), "prepare__slice_documents": 40}
    prepare(recipe("jsonl", source, tokenizer__backend="tokenizers", **settings), tmp_path / "slow")
    with caplog.at_level(logging.WARNING):
        prepare(recipe("jsonl", source, tokenizer__backend="fast", **settings), tmp_path / "fast")
    assert files_of(tmp_path / "slow") == files_of(tmp_path / "fast")
    assert sum("fastokens gives other ids" in record.message for record in caplog.records) == 2


def test_lost_bytes_tell_in_any_document() -> None:
    encoder = FastEncoder(tokenizer_of("own"))
    texts = sentences(2) + ["short one"]
    encoder.encode_batch(texts, contents(texts))
    real = encoder._fast

    class Shortened:
        def encode_batch_flat(self, inputs: list[str], **options: bool) -> tuple[bytes, bytes]:
            result: tuple[bytes, bytes] = real.encode_batch_flat([text[:-1] for text in inputs], **options)
            return result

    encoder._fast = Shortened()
    with pytest.raises(DifferentIdsError, match="stand for another text than 'short one'"):
        encoder.encode_batch(["short one"], contents([""]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_dataset_is_the_same_byte_for_byte(kind: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", sentences(300) + HARD)
    tokenizer_of(kind).save(tmp_path / "tokenizer")
    for backend in ("tokenizers", "fast"):
        made = recipe("jsonl", source, tokenizer__name=str(tmp_path / "tokenizer"), tokenizer__backend=backend)
        prepare(made, tmp_path / backend)
    assert files_of(tmp_path / "tokenizers") == files_of(tmp_path / "fast")
    # A finished dataset is the same dataset, whichever library is asked for next.
    assert prepare(made, tmp_path / "tokenizers").was_finished
    manifest = parse_manifest((tmp_path / "fast" / "manifest.json").read_bytes(), "it")
    assert "backend" not in manifest.recipe["tokenizer"]


def test_a_tokenizer_that_the_library_does_not_read_is_told_before_any_work(tmp_path: Path) -> None:
    raw = RawTokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "<s>": 2, "</s>": 3}, unk_token="[UNK]"))
    raw.add_special_tokens(["<s>", "</s>"])
    (tmp_path / "tokenizer").mkdir()
    raw.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    made = recipe("stdlib", None, tokenizer__name=str(tmp_path / "tokenizer"), tokenizer__backend="fast")
    with pytest.raises(
        TokenizerError, match=r"fastokens does not read this tokenizer .* write tokenizer.backend=tokenizers"
    ):
        prepare(made, tmp_path / "out")
