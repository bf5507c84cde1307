"""Any text becomes ids and back, no text can forge a control token, and each id stands for known bytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpora import LLAMA2, sentences
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers, processors

from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import ConfigError, TokenizerError
from packtrain.prepare.steps.train_tokenizer import BOS, EOS, train_tokenizer

TRICKY = [
    "",
    "a",
    " a",
    "naïve café",
    "日本語のテキスト",
    "🤖👨‍👩‍👧",
    "x\n\n\ty  z",
    "\u200b\ufeff",
    "<s>a</s><unk>",
    "<|bos|><|eos|>",
]


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return train_tokenizer(sentences(100), 400)


@pytest.fixture(scope="module")
def llama2() -> Tokenizer:
    if not LLAMA2.is_dir():
        pytest.skip("the Llama-2 tokenizer is not on this machine")
    return load_tokenizer(LLAMA2)


def test_own_tokenizer_knows_every_text(own: Tokenizer) -> None:
    for text in TRICKY:
        assert own.decode(own.encode(text), skip_special=False) == text


@given(st.text())
def test_own_tokenizer_loses_nothing(text: str) -> None:
    tokenizer = _SHARED.setdefault("own", train_tokenizer(sentences(20), 300))
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())


@given(st.text(alphabet=st.sampled_from("ab1.',é日▁ \n\t\u00a0\x1c<s>")), st.integers(1, 5))
def test_own_ids_are_the_same_in_pieces(text: str, most: int) -> None:
    tokenizer = _SHARED.setdefault("own", train_tokenizer(sentences(20), 300))
    pieces = list(tokenizer.pieces(text, most))
    assert "".join(pieces) == text
    assert [i for piece in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(text)


@pytest.mark.slow
def test_a_long_text_is_cut_and_its_ids_are_the_same(own: Tokenizer) -> None:
    text = " ".join(sentences(12_000))
    assert len(list(own.pieces(text, 1 << 20))) > 1
    assert own.encode_batch(["short", text]) == [own.encode("short"), own.encode(text)]


def test_a_tokenizer_that_is_not_known_is_not_cut(own: Tokenizer) -> None:
    raw = RawTokenizer.from_str(own.raw.to_str())
    raw.add_tokens(["two words"])
    changed = Tokenizer(raw.to_str(), {}, "the test")
    assert list(changed.pieces("some two words here", 1)) == ["some two words here"]


_SHARED: dict[str, Tokenizer] = {}


def test_a_literal_control_token_is_text(own: Tokenizer) -> None:
    ids = own.encode(f"{BOS} and {EOS}")
    assert not own.control_ids & set(ids)
    assert len(ids) > 3
    assert own.encode_batch([f"{BOS} and {EOS}"]) == [ids]


def test_training_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(200)
    made = [train_tokenizer(texts, 500).hash]
    for parallel in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        made.append(train_tokenizer(texts, 500).hash)
    assert len(set(made)) == 1


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size=258 or more"):
        train_tokenizer(["text"], 257)
    assert train_tokenizer(["text"], 258).vocab_size == 258


def test_a_megabyte_without_a_space_does_not_hold_up_training() -> None:
    tokenizer = train_tokenizer(["word " * 100 + "ab" * 1_000_000], 300)
    assert tokenizer.decode(tokenizer.encode("abab word")) == "abab word"


def test_saved_and_loaded_is_equal(own: Tokenizer, tmp_path: Path) -> None:
    own.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.hash, again.bos_id, again.eos_id, again.kind) == (own.hash, own.bos_id, own.eos_id, "byte-level")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "model_max_length" not in config


def test_truncation_padding_and_template_of_the_file_are_not_applied(own: Tokenizer, tmp_path: Path) -> None:
    raw = RawTokenizer.from_str(own.raw.to_str())
    raw.enable_truncation(4)
    raw.enable_padding(length=50)
    raw.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 0), (EOS, 1)])
    raw.save(str(tmp_path / "tokenizer.json"))
    text = "one two three four five"
    assert load_tokenizer(tmp_path).encode(text) == own.encode(text)


def test_dropout_of_the_file_is_not_applied() -> None:
    raw = RawTokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5))
    tokenizer = Tokenizer(raw.to_str(), {}, "the test")
    assert {tuple(tokenizer.encode("ab")) for _ in range(50)} == {(2,)}


def test_control_tokens_come_from_the_configuration(tmp_path: Path) -> None:
    raw = RawTokenizer(models.BPE())
    raw.add_special_tokens(["[START]", "[STOP]"])
    raw.pre_tokenizer = pre_tokenizers.ByteLevel()
    raw.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).bos_id is None
    config = {"bos_token": {"content": "[START]"}, "eos_token": "[STOP]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<none>"}')
    with pytest.raises(TokenizerError, match=r"names bos_token '<none>', which tokenizer.json does not have"):
        load_tokenizer(tmp_path)


ADDED = {"__type": "AddedToken", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
NAMED: list[Any] = [None, "<s>", "<|endoftext|>", {"content": "[A]", **ADDED}]
MAPS: list[list[Any]] = [[], [None], ["<s>"], ["[A]"], [{"content": "[A]"}]]


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("key", ["bos_token", "eos_token"])
def test_control_tokens_are_those_of_transformers(tmp_path: Path, key: str, decoder: bool) -> None:
    from transformers import AutoTokenizer

    raw = RawTokenizer(models.BPE())
    raw.add_special_tokens(["<s>", "</s>", "<|endoftext|>", "[A]"])
    raw.save(str(tmp_path / "tokenizer.json"))
    for named in NAMED:
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", key: named, f"add_{key}": True}
        if decoder:
            config["added_tokens_decoder"] = {"0": {"content": "<s>", "special": True}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        for tokens in MAPS:
            (tmp_path / "special_tokens_map.json").write_text(json.dumps({key: tokens[0]} if tokens else {}))
            ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
            assert getattr(ours, key) == getattr(theirs, key), (named, tokens)
            ours.save(tmp_path / "saved")
            again = load_tokenizer(tmp_path / "saved")
            assert (again.hash, getattr(again, key)) == (ours.hash, getattr(ours, key))


def test_only_what_no_file_names_is_known_by_its_spelling(tmp_path: Path) -> None:
    raw = RawTokenizer(models.BPE())
    raw.add_special_tokens(["<|endoftext|>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).assumed == {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": null}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.assumed) == (None, 0, {"eos_token": "<|endoftext|>"})


ODD = ["5", "true", '["<s>"]', "{}", '{"content": 5}', '{"content": null}', '"\\ud800"', '""', '"none"', "NaN"]


@pytest.mark.parametrize("key", ["bos_token", "eos_token", "unk_token"])
@pytest.mark.parametrize("value", ODD)
def test_a_control_token_that_is_no_text_is_refused(tmp_path: Path, key: str, value: str) -> None:
    raw = RawTokenizer(models.BPE())
    raw.add_special_tokens(["<s>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text(f'{{"{key}": {value}}}')
        if key == "unk_token" and value in ('""', '"none"'):
            assert load_tokenizer(tmp_path).unk_id is None
        else:
            with pytest.raises(TokenizerError, match=key):
                load_tokenizer(tmp_path)
        (tmp_path / name).unlink()


def test_nested_brackets_are_refused(tmp_path: Path) -> None:
    RawTokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"model": 1}'])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)


def test_a_missing_file_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json \(tokenizer\.model\)"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="no such folder"):
        load_tokenizer(tmp_path / "none")


def test_what_llama2_is(llama2: Tokenizer) -> None:
    assert (llama2.vocab_size, llama2.bos_id, llama2.eos_id) == (32_000, 1, 2)
    assert (llama2.kind, llama2.control_ids) == ("sentencepiece", {1, 2})


def test_a_literal_control_token_is_text_to_llama2(llama2: Tokenizer) -> None:
    assert not {1, 2} & set(llama2.encode("<s>a web page</s> and more</s>"))


@pytest.mark.parametrize("text", TRICKY)
def test_llama2s_bytes_sum_to_the_text_and_the_space_before_it(llama2: Tokenizer, text: str) -> None:
    ids = llama2.encode(text)
    assert llama2.token_bytes()[ids].sum() == len(text.encode()) + (text != "")
    assert llama2.decode(ids) == text


def test_llama2s_ids_are_those_of_the_original(llama2: Tokenizer) -> None:
    assert llama2.encode("Hello, world!") == [15043, 29892, 3186, 29991]


@given(st.text(alphabet=st.sampled_from("ab1.'é日▁ \n\t\u00a0<s>")), st.integers(1, 5))
def test_llama2s_ids_are_the_same_in_pieces(llama2: Tokenizer, text: str, most: int) -> None:
    pieces = list(llama2.pieces(text, most))
    assert [i for piece in pieces for i in llama2.encode(piece)] == llama2.encode(text)


def test_llama2s_ids_of_prose_are_the_same_in_pieces(llama2: Tokenizer) -> None:
    text = "\n\n".join(sentences(300))
    pieces = list(llama2.pieces(text, 50))
    assert len(pieces) > 500
    assert [i for piece in pieces for i in llama2.encode(piece)] == llama2.encode(text)


def test_a_line_without_spaces_takes_as_long_as_any_other(llama2: Tokenizer) -> None:
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh"), 500_000))
    ids = llama2.encode(text)
    assert llama2.decode(ids) == text
