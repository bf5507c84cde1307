"""Decides which tokenizers the cases use: some hold any text, some lose a part of it, some have odd special tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

_SPECIAL = ["<s>", "</s>"]


def _characters() -> Tokenizer:
    """BPE over the letters of a few words, without byte fallback: it drops what it does not know."""
    letters = sorted(set("Plainwordscafnveandtabs "))
    made = Tokenizer(models.BPE({token: n for n, token in enumerate([*_SPECIAL, *letters])}, []))
    made.decoder = decoders.Fuse()
    return made


def _words() -> Tokenizer:
    vocabulary = {token: n for n, token in enumerate([*_SPECIAL, "[UNK]", "plain", "words"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def _word_pieces() -> Tokenizer:
    vocabulary = {token: n for n, token in enumerate([*_SPECIAL, "[UNK]", "p", "##l", "##a", "##i", "##n"])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


def _bytes(normalizer: Any = None, missing: int = 0) -> Tokenizer:
    """Byte-level BPE; `normalizer` may change the text, and `missing` bytes may be left out of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: 256 - missing]
    made = Tokenizer(models.BPE({token: n for n, token in enumerate([*_SPECIAL, *alphabet])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    return made


def _byte_fallback(complete: bool) -> Tokenizer:
    """As SentencePiece makes it: a space is ▁, one is put before the text, and other bytes are <0x00> to <0xFF>."""
    tokens = ["<unk>", *_SPECIAL, *(f"<0x{n:02X}>" for n in range(256 if complete else 200)), "▁", *"Plainwords"]
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys(tokens))}
    made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    replace = decoders.Replace("▁", " ")
    made.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made


def _truncating() -> Tokenizer:
    made = _bytes()
    made.enable_truncation(max_length=5)
    return made


_PLAIN: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}


def _save(make: Callable[[], Tokenizer], config: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        folder.mkdir()
        made = make()
        made.add_special_tokens(_SPECIAL)
        made.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    return save


TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "characters without fallback": _save(_characters, _PLAIN),
    "whole words": _save(_words, _PLAIN),
    "word pieces": _save(_word_pieces, _PLAIN),
    "byte-level": _save(_bytes, _PLAIN),
    "byte-level, lower case": _save(lambda: _bytes(normalizers.Lowercase()), _PLAIN),
    "byte-level, stripped": _save(lambda: _bytes(normalizers.Strip()), _PLAIN),
    "byte-level, accents removed": _save(
        lambda: _bytes(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])), _PLAIN
    ),
    "byte-level, NFKC": _save(lambda: _bytes(normalizers.NFKC()), _PLAIN),
    "byte-level, bytes missing": _save(lambda: _bytes(missing=60), _PLAIN),
    "byte-level, truncating": _save(_truncating, _PLAIN),
    "byte fallback": _save(lambda: _byte_fallback(complete=True), _PLAIN),
    "byte fallback, bytes missing": _save(lambda: _byte_fallback(complete=False), _PLAIN),
    **{
        f"bos_token is {json.dumps(bos)[:30]}": _save(_bytes, {**_PLAIN, "bos_token": bos})
        for bos in (None, {"content": "<s>"}, {"content": None}, {}, 3, ["<s>"], "not in it", "", True)
    },
}
