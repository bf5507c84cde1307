"""Decides how text becomes ids and back, by a tokenizer.json that is read so that no text can forge a control token."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from packtrain.errors import TokenizerError
from packtrain.storage.atomic import write_atomically

TokenizerKind = Literal["byte-level", "sentencepiece", "other"]

# Tried in this order if no file says which control token is which; a file that says null says that there is none.
_USUAL_BOS = ("<|bos|>", "<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|endoftext|>")
_USUAL_EOS = ("<|eos|>", "</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")
# A longer text is encoded in pieces.
PIECE_CHARS = 1 << 20
# The sign for a space in Llama-2's vocabulary counts as a space.
_SAFE_SPACE = re.compile(r"(?<=[^\s▁]) (?=\S)")
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_LLAMA2_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def cut_at_spaces(text: str, most: int, *, keeps_space: bool) -> Iterator[str]:
    """Pieces of `most` characters, each up to the next space between characters that are not whitespace.

    `keeps_space`: the next piece begins with that space; otherwise no piece has it.
    """
    start = 0
    while (space := _SAFE_SPACE.search(text, start + most)) is not None:
        yield text[start : space.start()]
        start = space.start() if keeps_space else space.end()
    yield text[start:]


class Tokenizer:
    """An open tokenizer. `bos_id` and `eos_id` are None if it has no such token.

    `spec` is the content of its tokenizer.json, and `added_tokens` that part of it. `assumed` has the control tokens that no
    file names, under bos_token and eos_token: they are known by their spelling alone.
    """

    def __init__(self, text: str, config: dict[str, Any], where: str) -> None:
        try:
            self.raw = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001  the library raises nothing narrower
            raise TokenizerError(f"{where} is not a tokenizer.json that this version can read ({error})") from None
        # Without these a document could end itself by writing </s>, be cut short, or get a BOS that is not ours.
        self.raw.encode_special_tokens = True
        self.raw.no_truncation()
        self.raw.no_padding()
        self._text = text
        self.spec = json.loads(text)
        if (self.spec.get("model") or {}).get("dropout"):
            # It leaves merges out at random, so the ids would differ from run to run.
            self.raw.model.dropout = None
        self.added_tokens: list[dict[str, Any]] = self.spec.get("added_tokens") or []
        self.assumed: dict[str, str] = {}
        self.bos_token = self._control_token("bos_token", config, _USUAL_BOS, where)
        self.eos_token = self._control_token("eos_token", config, _USUAL_EOS, where)
        unknown = _content("unk_token", config.get("unk_token"), where)
        self.unk_token: str | None = unknown or (self.spec.get("model") or {}).get("unk_token")
        self.bos_id: int | None = None if self.bos_token is None else self.raw.token_to_id(self.bos_token)
        self.eos_id: int | None = None if self.eos_token is None else self.raw.token_to_id(self.eos_token)

    @cached_property
    def unk_id(self) -> int | None:
        """The id that stands for what the vocabulary lacks, if it has one."""
        return None if self.unk_token is None else self.raw.token_to_id(self.unk_token)

    @cached_property
    def vocab_size(self) -> int:
        """Largest id plus one: the rows that an embedding needs."""
        return 1 + max(self.raw.get_vocab(with_added_tokens=True).values())

    @cached_property
    def hash(self) -> str:
        """SHA-256, hexadecimal, of the tokenizer.json and the ids of BOS and EOS."""
        return hashlib.sha256(self._text.encode() + f"\0{self.bos_id},{self.eos_id}".encode()).hexdigest()

    @cached_property
    def kind(self) -> TokenizerKind:
        """How ids stand for bytes, if it is one of the two known ways."""
        if "ByteLevel" in _types(self.spec.get("pre_tokenizer")) | _types(self.spec.get("decoder")):
            return "byte-level"
        if _types(self.spec.get("decoder")) & {"ByteFallback", "Metaspace"}:
            return "sentencepiece"
        return "other"

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that no text may produce: BOS, EOS and every other special token except the unknown token."""
        special = {t["id"] for t in self.added_tokens if t.get("special") and t["content"] != self.unk_token}
        return frozenset(special.union(i for i in (self.bos_id, self.eos_id) if i is not None))

    def bytes_of_ids(self, text: str) -> int | None:
        """How many bytes the ids of a text stand for, by `token_bytes`; None if the tokenizer's form does not say."""
        if self._cut is None:
            return None
        size = len(text.encode())
        if self._cut == "before the space" or not text:
            return size
        # Llama-2's puts a space before the text, and takes its three-byte sign for a space as a space.
        return size + 1 - 2 * text.count("▁")

    def holds_added_token(self, text: str) -> bool:
        """Whether a text contains the spelling of a control token or of another added token."""
        begins, added = self._added
        return any(character in text for character in begins) and any(token in text for token in added)

    @cached_property
    def _added(self) -> tuple[set[str], list[str]]:
        """The first characters of added tokens, and the tokens."""
        added = [token["content"] for token in self.added_tokens]
        return {token[0] for token in added}, added

    def plain_json(self) -> str:
        """The tokenizer.json without truncation and padding, as it is used here."""
        return json.dumps(self.spec | {"truncation": None, "padding": None})

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS or EOS; control tokens written in it are text."""
        return self.raw.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many texts. Faster, because no offsets are kept; in bounded memory if a long text may be cut."""
        if all(len(text) <= PIECE_CHARS for text in texts):
            return self._encode_all(texts)
        return [
            list(chain.from_iterable(self._encode_all([piece])[0] for piece in self.pieces(text, PIECE_CHARS)))
            for text in texts
        ]

    def pieces(self, text: str, most: int) -> Iterator[str]:
        """Pieces whose ids, joined, are those of `text`: each of `most` characters, and on to the next safe space.

        The library takes a hundred bytes of memory for each byte of a text that is encoded whole. A space is safe if it is
        between two characters that are not whitespace, and no token of this tokenizer can cross its left side.
        """
        if self._cut is None:
            yield text
        else:
            yield from cut_at_spaces(text, most, keeps_space=self._cut == "before the space")

    @cached_property
    def _cut(self) -> Literal["before the space", "around the space"] | None:
        """How a text may be cut at a safe space; None if a cut is not known to leave the ids unchanged.

        Byte-level with GPT-2's pattern: each match is whitespace, or other characters with at most one space before them,
        and only a match of whitespace looks ahead; so a match ends before each safe space. Llama-2: the merges see the text
        as one word, but no token has a space after another character, and the tokenizer itself puts back the space that a
        piece would begin with.
        """
        model, before = self.spec.get("model") or {}, self.spec.get("pre_tokenizer")
        normalizer, added = self.spec.get("normalizer"), self.added_tokens
        if model.get("type") != "BPE" or model.get("dropout") or not all(token.get("special") for token in added):
            return None
        if normalizer is None and before is not None:
            plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
            return "before the space" if before | plain == before else None
        if before is None and normalizer == _LLAMA2_NORMALIZER:
            crossing = any("▁" in token.lstrip("▁") for token in self.raw.get_vocab())
            return None if crossing else "around the space"
        return None

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.raw.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids, with or without control tokens."""
        return self.raw.decode(ids, skip_special_tokens=skip_special)

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, int32[vocab_size]; 0 for control and unknown tokens.

        For a byte-level vocabulary, their sum over a document is its UTF-8 length. For Llama-2's it is one more, for the space
        that it puts before the text.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        special = {t["id"] for t in self.added_tokens if t.get("special")}
        added = {t["id"]: t["content"] for t in self.added_tokens}
        has_bytes = self.kind == "sentencepiece" or (self.spec.get("model") or {}).get("byte_fallback")
        for token, index in self.raw.get_vocab(with_added_tokens=True).items():
            if index in special or token == self.unk_token:
                continue
            if index in added:
                lengths[index] = len(added[index].encode())
            elif has_bytes and _BYTE_TOKEN.fullmatch(token):
                lengths[index] = 1
            elif self.kind == "byte-level":
                lengths[index] = len(token)  # its alphabet has one character for each byte
            elif self.kind == "sentencepiece":
                lengths[index] = len(token.replace("▁", " ").encode())
            else:
                lengths[index] = len(self.raw.decode([index], skip_special_tokens=False).encode())
        return lengths

    def save(self, folder: Path) -> None:
        """Write `files` to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            write_atomically(folder / name, data)

    def files(self) -> dict[str, bytes]:
        """A tokenizer_config.json that `transformers` cannot misread, and last the tokenizer.json as it was read.

        The class is PreTrainedTokenizerFast, because under LlamaTokenizer transformers 5 rewrites a Llama-2 tokenizer, which
        then loses a leading space.
        """
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token, "unk_token": self.unk_token}
        # null, so that no token is taken for a BOS or EOS by its spelling.
        config |= {key: token for key, token in tokens.items() if token is not None or key != "unk_token"}
        return {
            "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
            "tokenizer.json": self._text.encode(),
        }

    def _control_token(self, key: str, config: dict[str, Any], usual: Sequence[str], where: str) -> str | None:
        named = _content(key, config.get(key), where)
        if named is not None and self.raw.token_to_id(named) is None:
            raise TokenizerError(
                f"{where}: tokenizer_config.json names {key} '{named}', which tokenizer.json does not have"
            )
        if named is not None or key in config:
            return named
        special = {t["content"] for t in self.added_tokens if t.get("special")}
        found = next((token for token in usual if token in special), None)
        if found is not None:
            self.assumed[key] = found
        return found


def load_tokenizer(folder: Path) -> Tokenizer:
    """Open a folder with a tokenizer.json (and a tokenizer_config.json or special_tokens_map.json, if it has one).

    Raises TokenizerError if it is missing or unreadable, or if it names a control token that it does not have.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise TokenizerError(f"{folder} has no tokenizer.json ({found}); give a folder that has one")
    config, tokens = (
        _read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    # As transformers does: the older file counts unless the newer one has what replaced it.
    if "added_tokens_decoder" not in config:
        config |= tokens
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 ({error})") from None
    return Tokenizer(text, config, str(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} contains a {type(value).__name__}, not an object")
    return value


def _content(key: str, token: Any, where: str) -> str | None:
    """The text of a control token, which a file gives as a text, null, or an object with its `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    # A lone surrogate, which JSON can hold, is in no vocabulary.
    if token is None or (isinstance(text, str) and not any("\ud800" <= c <= "\udfff" for c in text)):
        return text
    raise TokenizerError(
        f"{where}: tokenizer_config.json or special_tokens_map.json gives {key} as {str(json.dumps(token))[:60]}; write a token "
        "in quotes, an object with its content, or null for none"
    )


def _types(node: Any) -> set[str]:
    """Types of a tokenizer component and of those inside it."""
    if not isinstance(node, dict):
        return set()
    inner = [child for key in ("pretokenizers", "decoders", "normalizers") for child in node.get(key) or []]
    return {node.get("type", "")}.union(*(_types(child) for child in inner))
