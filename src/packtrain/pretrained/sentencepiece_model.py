"""Decides what a sentencepiece model says: a protocol buffer with pieces, and how text is normalised (sentencepiece_model.proto)."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packtrain.pretrained.pieces import Controls, PieceKind, VocabularyPiece

_BPE = 2


def read_sentencepiece(path: Path) -> tuple[list[VocabularyPiece], dict[str, Any]]:
    """The pieces of a sentencepiece BPE, and what else `build_sentencepiece` takes of it.

    Raises ValueError, IndexError, KeyError or struct.error for anything else.
    """
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
    ids = [_signed(trainer.get(number, default)) for number, default in ((41, 1), (42, 2))]
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
