"""Text that a tokenizer does not give back is refused, or counted on request; the dataset is the same otherwise."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.corpora import LLAMA2, files_of, recipe, sentences, texts_of, write_jsonl
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from packtrain.cli.main import app
from packtrain.config.recipe import Recipe
from packtrain.data.format.account import describe_loss
from packtrain.data.format.manifest import Manifest, parse_manifest
from packtrain.errors import TokenizerError
from packtrain.prepare import run
from packtrain.prepare.estimate import estimate
from packtrain.prepare.run import prepare
from packtrain.prepare.steps.job import hash_recipe, record_recipe
from packtrain.report.dataset import account

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,\n\t"
CAFE = "café naïve 日本 😀 plain"
CAFE_LOSS = 2 + 2 + 6 + 4


@pytest.fixture
def letters(tmp_path: Path) -> str:
    """A BPE without byte fallback, which drops what it does not know."""
    raw = RawTokenizer(models.BPE({c: i for i, c in enumerate(["<s>", "</s>", *LETTERS])}, []))
    raw.decoder = decoders.Fuse()
    return save(raw, tmp_path / "letters")


def save(raw: RawTokenizer, folder: Path) -> str:
    raw.add_special_tokens(["<s>", "</s>"])
    folder.mkdir()
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return str(folder)


def over(tmp_path: Path, texts: list[str], name: str, **settings: Any) -> Recipe:
    return recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", texts), tokenizer__name=name, **settings)


def manifest_of(folder: Path) -> Manifest:
    return parse_manifest((folder / "manifest.json").read_bytes(), "it")


def test_lost_text_is_refused_before_anything_is_scanned(tmp_path: Path, letters: str) -> None:
    wanted = over(tmp_path, [*sentences(20), CAFE], letters)
    words = r"letters does not hold this text \(bytes lost: 14; .*: 1 of the first 21\); for example a.jsonl row 20: 'café naïve 日本 😀'"
    with pytest.raises(TokenizerError, match=words):
        prepare(wanted, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".work/scan/*"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.allow_loss=true"):
        estimate(wanted)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_lost_text_far_into_the_source_is_refused_too(tmp_path: Path, letters: str, workers: int) -> None:
    texts = [*sentences(300), CAFE]
    wanted = over(tmp_path, texts, letters, prepare__workers=workers, prepare__slice_documents=50)
    with pytest.raises(TokenizerError, match=r"bytes lost: 14; .*: 1 of 1\); for example a.jsonl row 300"):
        prepare(wanted, tmp_path / "out")


def test_a_loss_on_record_is_refused_when_it_is_no_longer_allowed(
    tmp_path: Path, letters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*sentences(300), CAFE]
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(run, "balance", lambda *_: {}["killed"])
        prepare(over(tmp_path, texts, letters, tokenizer__allow_loss=True), tmp_path / "out")
    with pytest.raises(TokenizerError, match="row 300"):
        prepare(over(tmp_path, texts, letters), tmp_path / "out")
    done = prepare(over(tmp_path, texts, letters, tokenizer__allow_loss=True), tmp_path / "out")
    assert done.tokenized == 0
    assert done.manifest.ledger["tokenizer_loss"]["utf8_bytes"] == {"train": CAFE_LOSS, "validation": 0}


def test_an_allowed_loss_is_in_the_ledger_and_shown(
    tmp_path: Path, letters: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = over(tmp_path, [*sentences(20), CAFE], letters, tokenizer__allow_loss=True)
    ledger = prepare(wanted, tmp_path / "out").manifest.ledger
    assert {unit: sum(sides.values()) for unit, sides in ledger["tokenizer_loss"].items()} == {
        "documents": 1,
        "utf8_bytes": CAFE_LOSS,
    }
    assert ledger["samples"]["tokenizer_loss"] == [
        "a.jsonl row 20: 'café naïve 日本 😀' comes back as 'caf nave   plai'"
    ]
    words = describe_loss(ledger)
    assert words is not None and "lost 14 bytes of text" in words
    assert any("lost 14 bytes of text" in str(part) for part in account(ledger, {}))
    app(["inspect", str(tmp_path / "out")], standalone_mode=False)
    assert "lost 14 bytes of text" in capsys.readouterr().err
    estimated = estimate(wanted)["tokenizer_loss"]
    assert {unit: sum(sides.values()) for unit, sides in estimated.items()} == {
        "documents": 1,
        "utf8_bytes": CAFE_LOSS,
    }


@pytest.mark.parametrize("loss", [5, "x", [1], {"documents": 1}, {"documents": {"train": "x"}, "utf8_bytes": {}}])
def test_a_ledger_that_someone_changed_is_still_read(loss: Any) -> None:
    words = describe_loss({"tokenizer_loss": loss})
    assert words is not None and "the tokenizer lost text" in words


def test_without_a_loss_the_setting_changes_no_byte(tmp_path: Path, letters: str) -> None:
    texts = sentences(20)
    for allowed in (False, True):
        prepare(over(tmp_path, texts, letters, tokenizer__allow_loss=allowed), tmp_path / f"{allowed}")
    assert files_of(tmp_path / "False") == files_of(tmp_path / "True")
    assert "tokenizer_loss" not in manifest_of(tmp_path / "True").ledger
    assert "allow_loss" not in manifest_of(tmp_path / "True").recipe["tokenizer"]


def test_the_recorded_recipe_is_as_before(tmp_path: Path) -> None:
    made = recipe("jsonl", tmp_path / "a.jsonl")
    allowed = recipe("jsonl", tmp_path / "a.jsonl", tokenizer__allow_loss=True)
    assert record_recipe(made)["tokenizer"].keys() == {"name", "revision", "vocab_size", "bos", "eos"}
    assert hash_recipe(made) == hash_recipe(allowed)


def test_words_that_become_unknown_tokens_are_lost(tmp_path: Path) -> None:
    raw = RawTokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    name = save(raw, tmp_path / "words")
    with pytest.raises(TokenizerError, match=r"'the dog' comes back as 'the \[UNK\]'"):
        prepare(over(tmp_path, ["the dog"], name), tmp_path / "out")


def test_a_lower_casing_normalizer_is_refused(tmp_path: Path) -> None:
    raw = RawTokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    name = save(raw, tmp_path / "lower")
    with pytest.raises(TokenizerError, match="'A Cat' comes back as 'a cat'"):
        prepare(over(tmp_path, ["A Cat"], name), tmp_path / "out")


def test_awkward_text_is_warned_of_at_once(tmp_path: Path, letters: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prepare(over(tmp_path, sentences(20), letters), tmp_path / "out")
    assert "does not hold every text (it has no token for some characters" in caplog.text


def test_control_tokens_that_a_text_spells_come_back(tmp_path: Path) -> None:
    text = "a </s> <s> <|eos|> <|endoftext|> <unk> b"
    raw = RawTokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    name = save(raw, tmp_path / "bytes")
    texts = [*sentences(20), text]
    prepare(over(tmp_path, texts, name), tmp_path / "out")
    assert sorted(texts_of(tmp_path / "out")) == sorted(texts)
    assert "tokenizer_loss" not in manifest_of(tmp_path / "out").ledger


@pytest.mark.skipif(not LLAMA2.is_dir(), reason="the Llama-2 tokenizer is not on this machine")
@pytest.mark.parametrize("backend", ["tokenizers", "fast"])
@pytest.mark.slow
def test_llama2s_sign_for_a_space_is_counted_and_not_refused(tmp_path: Path, backend: str) -> None:
    if backend == "fast":
        pytest.importorskip("fastokens")
    made = over(tmp_path, [*sentences(20), "bars ▁▂▃ </s>"], str(LLAMA2), tokenizer__backend=backend)
    ledger = prepare(made, tmp_path / "out").manifest.ledger
    assert sum(ledger["tokenizer_loss"]["utf8_bytes"].values()) == len("▁".encode())


def test_the_lossy_tokenizer_of_the_fast_library_is_refused_too(tmp_path: Path, letters: str) -> None:
    pytest.importorskip("fastokens")
    spec = json.loads((Path(letters) / "tokenizer.json").read_text())
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    spec["model"]["vocab"] |= {"Ġ": 900}
    (Path(letters) / "tokenizer.json").write_text(json.dumps(spec))
    wanted = over(tmp_path, [*sentences(300), CAFE], letters, tokenizer__backend="fast")
    with pytest.raises(TokenizerError):
        prepare(wanted, tmp_path / "out")
