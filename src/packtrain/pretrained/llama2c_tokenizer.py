"""Decides which tokenizer belongs to a llama2.c file: the one beside it with as many tokens, a .model, a .bin or a tokenizer.json."""

import struct
from pathlib import Path
from typing import Any

from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import TokenizerError
from packtrain.pretrained.pieces import Controls, PieceKind, VocabularyPiece, build_sentencepiece
from packtrain.pretrained.sentencepiece_model import read_sentencepiece

_MOST_BYTES = 1 << 26
# llama2.c's own tokenizer.py writes these around the two control tokens; their ids are fixed, as in run.c.
_UNKNOWN, _BOS, _EOS = 0, 1, 2


def read_tokenizer_beside(model: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in the folder of `model` that has `vocab_size` tokens. Raises TokenizerError if there is none, or two."""
    folder = model.parent
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder)
    reasons = []
    for path in _candidates(model, vocab_size):
        try:
            if path.suffix == ".model":
                pieces, options = read_sentencepiece(path)
            else:
                pieces, options = _read_bin(path, vocab_size)
        except (struct.error, LookupError, ValueError) as error:
            reasons.append(f"{path.name}: {str(error)[:80]}")
            continue
        if len(pieces) != vocab_size:
            reasons.append(f"{path.name}: it has {len(pieces)} tokens, and the model {vocab_size}")
            continue
        return build_sentencepiece(path, pieces, **options)
    why = f" ({'; '.join(reasons[:3])})" if reasons else ""
    raise TokenizerError(
        f"{folder} has no tokenizer for {model.name}{why}; put its tokenizer.model, tokenizer.bin or tokenizer.json beside it"
    )


def _candidates(model: Path, vocab_size: int) -> list[Path]:
    """Files that may be the tokenizer, the likeliest first."""
    usual = [f"{name}{end}" for end in (".model", ".bin") for name in (f"tok{vocab_size}", "tokenizer", model.stem)]
    found = [model.parent / name for name in usual]
    found += sorted(model.parent.glob("*.model"))
    small = {path: None for path in found if path.is_file() and path.resolve() != model.resolve()}
    return [path for path in small if path.stat().st_size <= _MOST_BYTES]


def _read_bin(path: Path, vocab_size: int) -> tuple[list[VocabularyPiece], dict[str, Any]]:
    """llama2.c's tokenizer.bin: the longest token's length, then score, length and bytes of each token."""
    data, at, pieces = path.read_bytes(), 4, []
    for index in range(vocab_size):
        if at + 8 > len(data):
            raise ValueError("it was cut short, or has other tokens than the model")
        score, length = struct.unpack_from("<fi", data, at)
        if not 0 <= length <= len(data) - at - 8:
            raise ValueError("it was cut short, or has other tokens than the model")
        at += 8 + length
        text = data[at - length : at].decode("utf-8")
        pieces.append(_piece(index, text, score))
    if at != len(data):
        raise ValueError("it has more tokens than the model")
    return pieces, {"controls": Controls(_BOS, _EOS)}


def _piece(index: int, text: str, score: float) -> VocabularyPiece:
    if index == _UNKNOWN:
        return VocabularyPiece(text, score, PieceKind.UNKNOWN)
    if index in (_BOS, _EOS):
        return VocabularyPiece(text.strip() or f"<{index}>", score, PieceKind.CONTROL)
    is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return VocabularyPiece(text.replace(" ", "▁"), score, PieceKind.BYTE if is_byte else PieceKind.NORMAL)
