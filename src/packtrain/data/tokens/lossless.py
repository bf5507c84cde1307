"""Decides whether a tokenizer gives every text back: proven from its parts, or found by decoding each text and comparing."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple
from unicodedata import normalize

from tokenizers import pre_tokenizers

from packtrain.data.tokens.tokenizer import Tokenizer

# Llama-2's sign for a space, which its decoder gives back as a space.
_SPACE_SIGN = "▁"
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())
# Pre-tokenizers that only cut, given that none removes what it cuts at.
_CUTTERS = frozenset({"Split", "Punctuation", "Digits", "UnicodeScripts", "FixedLength"})
_AROUND = 12


class Loss(NamedTuple):
    """What a tokenizer does not give back of a text: UTF-8 bytes of missing characters, and the place in words."""

    utf8_bytes: int
    example: str
    is_space_sign: bool
    """Nothing but signs for a space, which came back as spaces; nothing that can be done about it with this tokenizer."""


class RoundTrip:
    """Finds what a tokenizer does not give back of a text.

    `flaw` says in words why it is not proven that every text comes back, up to one space before it; None if it is proven.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.flaw = _find_flaw(tokenizer)
        self._is_suspect = self._choose_suspects()

    @property
    def is_certain(self) -> bool:
        """Whether no text can lose anything, so that none need be looked at."""
        return self._is_suspect is None

    def find_loss(self, text: str, ids: Sequence[int]) -> Loss | None:
        """What is missing or changed in the text that the ids of `text` stand for; None if it is the same."""
        if self._is_suspect is None or not self._is_suspect(text):
            return None
        back = self._tokenizer.decode(ids, skip_special=False)
        if self._puts_space:
            text, back = text.removeprefix(" "), back.removeprefix(" ")
        if back == text:
            return None
        unknown = self._tokenizer.unk_id
        known = (
            back if unknown is None else self._tokenizer.decode([i for i in ids if i != unknown], skip_special=False)
        )
        missing = Counter(text) - Counter(known)
        is_space_sign = self.flaw is None and text.replace(_SPACE_SIGN, " ") == back
        return Loss(sum(len(c.encode()) * n for c, n in missing.items()), _show_difference(text, back), is_space_sign)

    def _choose_suspects(self) -> Callable[[str], bool] | None:
        """Which texts must be decoded; None if none must."""
        tokenizer = self._tokenizer
        if self.flaw is not None:
            # The space that a tokenizer puts before a text does not belong to the text.
            self._puts_space = tokenizer.decode(tokenizer.encode("a")) == " a" or (
                tokenizer.decode(tokenizer.encode(" a")) == "a"
            )
            return lambda _: True
        normalizer = tokenizer.raw.normalizer
        self._puts_space = not _is_byte_level(tokenizer.spec)
        if self._puts_space:
            return lambda text: _SPACE_SIGN in text
        if normalizer is not None and list(_parts(tokenizer.spec.get("normalizer"))):
            return lambda text: not text.isascii() and normalizer.normalize_str(text) != text
        return None


def _find_flaw(tokenizer: Tokenizer) -> str | None:
    spec = tokenizer.spec
    model = spec.get("model") or {}
    if model.get("type") != "BPE":
        return f"its model is {model.get('type', 'of an unknown type')}, not BPE"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "its model marks the parts of words"
    vocab = tokenizer.raw.get_vocab(with_added_tokens=True)
    if len(set(vocab.values())) != len(vocab):
        return "some of its tokens share an id"
    return _byte_level_flaw(tokenizer) if _is_byte_level(spec) else _byte_fallback_flaw(tokenizer)


def _byte_level_flaw(tokenizer: Tokenizer) -> str | None:
    """Every byte is a character of the vocabulary; cutting keeps all of them, and joining them gives the bytes."""
    spec = tokenizer.spec
    missing = len(_ALPHABET - spec["model"]["vocab"].keys())
    if missing:
        return f"its vocabulary lacks {missing} of the 256 bytes"
    normalizers = [part["type"] for part in _parts(spec.get("normalizer"))]
    # A text in form NFC stays as it is; each one is compared.
    if normalizers not in ([], ["NFC"]):
        return f"it changes the text first ({', '.join(normalizers)})"
    *cutters, last = [*_parts(spec.get("pre_tokenizer"))] or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        return "its pre-tokenizer is not a byte-level one that keeps the text as it is"
    if not all(_keeps_text(cutter) for cutter in cutters):
        return "its pre-tokenizer may remove text"
    for token in _plain_added_tokens(tokenizer):
        # The decoder takes the characters of its alphabet for bytes.
        is_kept = token["content"].isascii() or not _ALPHABET.issuperset(token["content"])
        if token.get("lstrip") or token.get("rstrip") or not is_kept:
            return f"its added token {token['content']!r} takes spaces away, or does not come back"
    return None


def _byte_fallback_flaw(tokenizer: Tokenizer) -> str | None:
    """What the vocabulary lacks becomes bytes, and the decoder undoes what is done to spaces (Llama-2, Mistral, Gemma)."""
    spec = tokenizer.spec
    model = spec["model"]
    if not model.get("byte_fallback") or not model["vocab"].keys() >= _BYTE_TOKENS:
        return "it has no token for some characters, and does not write those as bytes"
    merged = {"".join(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in model.get("merges") or ()}
    if model.get("ignore_merges") or merged & _BYTE_TOKENS:
        return "it may take text for a byte"
    if next(_plain_added_tokens(tokenizer), None) is not None:
        return "it has added tokens, and may put a space after each"
    normalizers, cutters = list(_parts(spec.get("normalizer"))), list(_parts(spec.get("pre_tokenizer")))
    prefix, signs = {"type": "Prepend", "prepend": _SPACE_SIGN}, _replace(" ", _SPACE_SIGN)
    metaspace = {"type": "Metaspace", "replacement": _SPACE_SIGN}
    if not normalizers and len(cutters) == 1 and cutters[0] | metaspace == cutters[0]:
        puts_space = cutters[0].get("prepend_scheme", "always") != "never"
    elif normalizers in ([prefix, signs], [signs]) and all(_keeps_text(cutter) for cutter in cutters):
        puts_space = len(normalizers) == 2
    else:
        return "it changes the text first, in a way that is not known to be undone"
    undo = [_replace(_SPACE_SIGN, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if puts_space:
        undo.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    if list(_parts(spec.get("decoder"))) != undo or _SPACE_SIGN not in model["vocab"]:
        return "its decoder is not known to undo what it does to spaces"
    return None


def _is_byte_level(spec: dict[str, Any]) -> bool:
    return [part["type"] for part in _parts(spec.get("decoder"))] == ["ByteLevel"]


def _keeps_text(part: dict[str, Any]) -> bool:
    return part["type"] in _CUTTERS and part.get("behavior") != "Removed"


def _plain_added_tokens(tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Added tokens that are found in a text; control tokens are not, see `Tokenizer`."""
    return (token for token in tokenizer.added_tokens if not token.get("special"))


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """A component of a tokenizer.json, or those of a sequence, in order."""
    if node is None:
        return iter(())
    if node.get("type") == "Sequence":
        inner = chain.from_iterable(node.get(key) or () for key in ("normalizers", "pretokenizers", "decoders"))
        return chain.from_iterable(map(_parts, inner))
    return iter((node,))


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _show_difference(text: str, back: str) -> str:
    """The first place where two texts differ, in words."""
    at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    around = slice(max(0, at - _AROUND), at + _AROUND)
    # Texts that differ only in their normal form look the same.
    show = ascii if normalize("NFC", text) == normalize("NFC", back) else repr
    return f"{show(text[around])} comes back as {show(back[around])}"
