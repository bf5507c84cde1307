"""A tokenizer without the BOS or EOS that a recipe needs is refused, and one whose BOS is only assumed is told."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.corpora import recipe
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models

from packtrain.errors import TokenizerError
from packtrain.prepare.steps.job import load_named_tokenizer


def save(folder: Path, special: list[str], config: dict[str, Any] | None) -> str:
    raw = RawTokenizer(models.BPE())
    raw.add_special_tokens(special)
    raw.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("key", ["bos", "eos"])
def test_null_means_that_there_is_none(tmp_path: Path, key: str) -> None:
    name = save(tmp_path, ["<s>", "</s>"], {f"{key}_token": None})
    with pytest.raises(TokenizerError, match=rf"has no {key.upper()} token.*write tokenizer\.{key}=false"):
        load_named_tokenizer(recipe("stdlib", tokenizer__name=name))
    tokenizer = load_named_tokenizer(recipe("stdlib", tokenizer__name=name, **{f"tokenizer__{key}": False}))
    assert tokenizer is not None


def test_one_token_is_not_assumed_to_be_both(tmp_path: Path) -> None:
    name = save(tmp_path, ["<|endoftext|>"], None)
    with pytest.raises(TokenizerError, match=r"write tokenizer\.bos=false"):
        load_named_tokenizer(recipe("stdlib", tokenizer__name=name))
    tokenizer = load_named_tokenizer(recipe("stdlib", tokenizer__name=name, tokenizer__bos=False))
    assert tokenizer is not None and tokenizer.eos_id == 0


def test_a_token_that_no_file_names_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = save(tmp_path, ["<s>", "</s>"], None)
    with caplog.at_level(logging.WARNING):
        load_named_tokenizer(recipe("stdlib", tokenizer__name=name))
    assert "says which token is its BOS; taking <s> by its name" in caplog.text
    caplog.clear()
    load_named_tokenizer(recipe("stdlib", tokenizer__name=name, tokenizer__bos=False, tokenizer__eos=False))
    assert not caplog.text
