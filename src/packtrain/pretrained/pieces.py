"""Decides how the parts of a vocabulary, from a GGUF, a sentencepiece model or llama2.c, become a tokenizer again."""

import json
import logging
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers

from packtrain.data.tokens.lossless import RoundTrip
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import TokenizerError
from packtrain.pretrained.gguf_layout import PRE_TOKENIZERS

_SPACE = "▁"
_log = logging.getLogger("packtrain")

# What a step of a tokenizer.json has besides.
_REST = {"ByteLevel": {"trim_offsets": True}}
# llama.cpp's own names for what it treats alike.
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}


class PieceKind(IntEnum):
    """As sentencepiece and GGUF number them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class VocabularyPiece(NamedTuple):
    """A token of a sentencepiece vocabulary; its place is its id."""

    text: str
    score: float
    kind: PieceKind


class Controls(NamedTuple):
    """Ids of the control tokens; None for one that there is not."""

    bos: int | None
    eos: int | None


def build_sentencepiece(
    where: Path,
    pieces: Sequence[VocabularyPiece],
    controls: Controls,
    *,
    puts_space: bool = True,
    squeezes: bool = False,
    charsmap: bytes = b"",
) -> Tokenizer:
    """A tokenizer of a sentencepiece BPE: of the pairs in a text, the one whose piece has the highest score is merged first.

    `puts_space` before a text, `squeezes` runs of spaces, `charsmap` normalises: as the model's normaliser does. Raises
    TokenizerError for a vocabulary that is not whole.
    """
    vocab = {piece.text: index for index, piece in enumerate(pieces)}
    if len(vocab) < len(pieces):
        raise TokenizerError(f"the vocabulary in {where} has a token twice; give the model's own tokenizer")
    has_bytes = any(piece.kind == PieceKind.BYTE for piece in pieces)
    unknown = next((piece.text for piece in pieces if piece.kind == PieceKind.UNKNOWN), None)
    raw = tokenizers.Tokenizer(
        models.BPE(
            vocab, find_merges(pieces, vocab), unk_token=unknown, fuse_unk=unknown is not None, byte_fallback=has_bytes
        )
    )
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if squeezes:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(_SPACE)] if puts_space else []
    raw.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    undo = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if puts_space else undo)
    _add_tokens(raw, dict(enumerate(pieces)))
    return _finish(raw, where, controls, [piece.text for piece in pieces])


def find_merges(pieces: Sequence[VocabularyPiece], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes up another, that of the highest score first."""
    mergeable = {piece.text for piece in pieces if piece.kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED)}
    merges: list[tuple[float, int, int, tuple[str, str]]] = []
    for text in mergeable:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in mergeable and right in mergeable:
                merges.append((-pieces[vocab[text]].score, vocab[left], vocab[right], (left, right)))
    return [pair for *_, pair in sorted(merges)]


def build_byte_level(
    where: Path,
    tokens: Sequence[str],
    kinds: Sequence[int],
    merges: Sequence[str],
    cut: str,
    controls: Controls,
) -> Tokenizer:
    """A byte-level BPE. `cut` is llama.cpp's name for how a text is cut. Raises TokenizerError for one that is not known."""
    cut = _ALIASES.get(cut, cut)
    if cut not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"the tokenizer in {where} cuts text in the way '{cut[:40]}', and packtrain knows {', '.join(PRE_TOKENIZERS)}; "
            "put the model's tokenizer.json beside it"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    if len(vocab) < len(tokens) or any("".join(pair) not in vocab for pair in pairs):
        raise TokenizerError(f"the vocabulary in {where} does not fit its merges; give the model's own tokenizer")
    model = models.BPE(vocab, pairs, ignore_merges=PRE_TOKENIZERS[cut].ignores_merges)
    steps = [step | _REST.get(step["type"], {}) for step in PRE_TOKENIZERS[cut].steps]
    spec = json.loads(tokenizers.Tokenizer(model).to_str())
    spec["pre_tokenizer"] = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    raw = tokenizers.Tokenizer.from_str(json.dumps(spec))
    raw.decoder = decoders.ByteLevel()
    _add_tokens(
        raw,
        {
            index: VocabularyPiece(token, 0.0, PieceKind(kinds[index]))
            for index, token in enumerate(tokens)
            if index < len(kinds)
        },
    )
    return _finish(raw, where, controls, tokens)


def _add_tokens(raw: tokenizers.Tokenizer, pieces: dict[int, VocabularyPiece]) -> None:
    """Declares control tokens, and tokens of the user's, which stay whole in a text."""
    control = [p.text for p in pieces.values() if p.kind in (PieceKind.CONTROL, PieceKind.UNKNOWN)]
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control if text])
    plain = [p.text for p in pieces.values() if p.kind == PieceKind.USER_DEFINED and p.text]
    raw.add_tokens([AddedToken(text, normalized=False) for text in plain])


def _finish(raw: tokenizers.Tokenizer, where: Path, controls: Controls, tokens: Sequence[str]) -> Tokenizer:
    names: dict[str, str | None] = {}
    for key, index in (("bos_token", controls.bos), ("eos_token", controls.eos)):
        if index is not None and not 0 <= index < len(tokens):
            raise TokenizerError(f"{where} names {key} {index}, and its vocabulary has {len(tokens)} tokens")
        names[key] = None if index is None else tokens[index]
    tokenizer = Tokenizer(json.dumps(json.loads(raw.to_str()), ensure_ascii=False), names, str(where))
    if len(tokens) != tokenizer.vocab_size:
        raise TokenizerError(f"the vocabulary in {where} is not whole; give the model's own tokenizer")
    flaw = RoundTrip(tokenizer).flaw
    if flaw is not None:
        _log.warning("the tokenizer in %s may not give every text back: %s", where, flaw)
    return tokenizer
