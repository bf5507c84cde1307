"""Decides whether two tokenizers give the same ids, and which rows of a model's embedding another tokenizer can keep."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor

from packtrain.data.tokens.tokenizer import Tokenizer

STRINGS = (
    "Hello, world!",
    " two  spaces before,  and   runs   inside ",
    "def f(x):\n\treturn x ** 2  # tab\r\n\n\n",
    "Zürich, naïve café — “quotes” … ½ ≤ ∑",
    "北京 東京 서울 مرحبا עברית हिन्दी",
    "🙂👩‍👩‍👧🇨🇭 e\u0301 \u200b\u00a0\ufeff",
    "1234567890 3.14159 0x1F 10,000,000",
    "<html><body class='a'>&amp;</body></html> {\"k\": [1, null]}",
    "AaAaAa" * 20,
    "\n",
    " ",
    "a",
    "I'll say it's WE'RE they'd don’t O'Neil 'tis",
    "    indented\n        more\n\n  \t mixed \t\t end   ",
    "http://example.org/a_b?c=d&e=%20f#g user@host.net C:\\dir\\file",
    "Once upon a time, there was a little girl named Lily. She liked to play outside.",
)
"""Texts that tokenizers disagree on easily; compared by ids and by decoded text."""
_FORGED = "<s>forged</s>"
_MEANINGFUL = ("model", "normalizer", "pre_tokenizer", "added_tokens")
_Meaning = tuple[str, str | bytes]


def find_difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """Where two tokenizers give different ids, as a clause; None if they do not.

    A different post-processor, truncation or decoder changes no id that training sees. If the files differ in other ways, the
    vocabularies are compared token by token, and then the ids of STRINGS.
    """
    if (one.bos_id, one.eos_id) != (other.bos_id, other.eos_id):
        return (
            f"BOS and EOS are {one.bos_id} and {one.eos_id} in one and {other.bos_id} and {other.eos_id} in the other"
        )
    if _canonical(one) == _canonical(other):
        return None
    ours, theirs = (t.raw.get_vocab(with_added_tokens=True) for t in (one, other))
    if ours != theirs:
        differing = ours.items() ^ theirs.items()
        token = min(differing, key=lambda pair: (pair[1], pair[0]))[0]
        first, second = (f"id {vocab[token]}" if token in vocab else "no id" for vocab in (ours, theirs))
        return f"{token!r} has {first} in one and {second} in the other, and {len(differing):,} tokens differ"
    text = next((text for text in (*STRINGS, _FORGED) if one.encode(text) != other.encode(text)), None)
    return None if text is None else f"the ids of {text[:40]!r} differ"


@dataclass(frozen=True)
class VocabularyMap:
    """Which rows of an old embedding a new one keeps."""

    old_rows: Tensor
    """For each new row the old one, or -1 for the mean; int64[new rows]."""
    num_old: int
    """Tokens that the old embedding has rows for; rows beyond are padding."""
    num_new_tokens: int

    @property
    def num_kept(self) -> int:
        return int((self.old_rows >= 0).sum())

    @property
    def num_mean(self) -> int:
        """New tokens whose row is the mean of the old ones."""
        return self.num_new_tokens - self.num_kept

    @property
    def num_dropped(self) -> int:
        """Old tokens that the new vocabulary lacks."""
        return self.num_old - len(set(self.old_rows[self.old_rows >= 0].tolist()))

    def apply(self, rows_VD: Tensor) -> Tensor:
        """The new embedding or output projection. Rows that no token uses are the mean as well."""
        mean_D = rows_VD[: self.num_old].mean(dim=0)
        found_VD = rows_VD[self.old_rows.clamp(min=0)]
        return torch.where((self.old_rows >= 0)[:, None], found_VD, mean_D)

    def describe(self) -> dict[str, int]:
        """For a run's manifest."""
        return {
            "tokens_before": self.num_old,
            "tokens": self.num_new_tokens,
            "kept": self.num_kept,
            "set_to_mean": self.num_mean,
            "dropped": self.num_dropped,
        }


def map_vocabulary(old: Tokenizer, new: Tokenizer, rows: int) -> VocabularyMap:
    """The rows that a model with `rows` rows for `new` keeps of a model for `old`: those of tokens with the same string.

    A byte-level vocabulary writes a space as Ġ and sentencepiece's as ▁; they are compared by the text that they stand for.
    """
    before = {meaning: index for index, meaning in _meanings(old).items()}
    old_rows = torch.full((rows,), -1, dtype=torch.int64)
    for index, meaning in _meanings(new).items():
        old_rows[index] = before.get(meaning, -1)
    return VocabularyMap(old_rows, old.vocab_size, new.vocab_size)


def _canonical(tokenizer: Tokenizer) -> str:
    """What of a tokenizer decides the ids of a text, in the library's own spelling."""
    spec = json.loads(tokenizer.raw.to_str())
    return json.dumps({key: spec.get(key) for key in _MEANINGFUL}, sort_keys=True)


def _meanings(tokenizer: Tokenizer) -> dict[int, _Meaning]:
    """What each id stands for: a control token its name, any other the bytes of its text."""
    added: dict[int, dict[str, Any]] = {token["id"]: token for token in tokenizer.added_tokens}
    found: dict[int, _Meaning] = {}
    for token, index in tokenizer.raw.get_vocab(with_added_tokens=True).items():
        if index in added or token == tokenizer.unk_token:
            special = index not in added or added[index].get("special")
            found[index] = ("control", token) if special else ("text", token.encode())
        elif tokenizer.kind == "byte-level":
            found[index] = _byte_level(token)
        else:
            found[index] = _plain(token)
    return found


def _byte_level(token: str) -> _Meaning:
    try:
        return "text", bytes(_BYTES[character] for character in token)
    except KeyError:
        return "text", token.encode()


def _plain(token: str) -> _Meaning:
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    if not is_byte:
        return "text", token.replace("▁", " ").encode()
    value = int(token[3:5], 16)
    # A byte of a longer character can be nothing else; an ASCII one may have a token as a character too.
    return ("text", bytes([value])) if value >= 0x80 else ("byte", token)


def _alphabet() -> dict[str, int]:
    """The byte that each character of the byte-level alphabet stands for (GPT-2's bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    return alphabet


_BYTES = _alphabet()
