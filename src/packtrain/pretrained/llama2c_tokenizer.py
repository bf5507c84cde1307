"""Decides which tokenizer belongs to a llama2.c file: the one beside it with as many tokens, a .model, a .bin or a tokenizer.json."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import TokenizerError
from packtrain.pretrained.pieces import Controls, PieceKind, VocabularyPiece, build_sentencepiece

_MOST_BYTES = 1 << 26
_BPE = 2
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
            pieces, options = (_read_model if path.suffix == ".model" else _read_bin)(path, vocab_size)
        except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
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


def _read_model(path: Path, _: int) -> tuple[list[VocabularyPiece], dict[str, Any]]:
    """A sentencepiece model, which is a protocol buffer (sentencepiece_model.proto)."""
    pieces: list[VocabularyPiece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(path.read_bytes()):
        if number == 1:
            entry = dict(_fields(value))
            score = struct.unpack("<f", entry[2])[0] if 2 in entry else 0.0
            pieces.append(VocabularyPiece(entry[1].decode("utf-8"), score, PieceKind(entry.get(3, 1))))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if trainer.get(3, 1) != _BPE:
        raise ValueError("it is not a sentencepiece BPE")
    ids = [_signed(trainer.get(number, default)) for number, default in ((41, _BOS), (42, _EOS))]
    return pieces, {
        "controls": Controls(*(index if index >= 0 else None for index in ids)),
        "puts_space": bool(normalizer.get(3, 1)),
        "squeezes": bool(normalizer.get(4, 1)),
        "charsmap": normalizer.get(2, b""),
    }


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer: numbers as int, everything else as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("it is not a sentencepiece model")
        if length > len(data) - at:
            raise ValueError("it was cut short")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if not byte & 128:
            return value, at
        if shift > 63:
            raise ValueError("it is not a sentencepiece model")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
