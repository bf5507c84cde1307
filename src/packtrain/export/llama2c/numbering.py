"""Decides the ids of tokens in llama2.c's files: run.c begins each text with id 1, and takes ids 3 to 258 for single bytes."""

import copy
from dataclasses import dataclass
from typing import Any

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import ExportError

BOS, EOS, FIRST_BYTE = 1, 2, 3


@dataclass(frozen=True)
class Numbering:
    """How ids of ours become ids of the file, one to one."""

    old_ids: list[int]
    """By the id in the file, the id of ours."""

    @property
    def new_ids(self) -> list[int]:
        """By the id of ours, the id in the file."""
        found = [0] * len(self.old_ids)
        for new, old in enumerate(self.old_ids):
            found[old] = new
        return found

    @property
    def is_ours(self) -> bool:
        """Whether no id changes."""
        return self.old_ids == list(range(len(self.old_ids)))

    def apply_to(self, spec: dict[str, Any]) -> dict[str, Any]:
        """A tokenizer.json with the file's ids."""
        new, result = self.new_ids, copy.deepcopy(spec)
        result["model"]["vocab"] = {token: new[index] for token, index in spec["model"]["vocab"].items()}
        for token in result.get("added_tokens") or []:
            token["id"] = new[token["id"]]
        result["added_tokens"] = sorted(result.get("added_tokens") or [], key=lambda token: token["id"])
        for token in ((result.get("post_processor") or {}).get("special_tokens") or {}).values():
            token["ids"] = [new[index] for index in token["ids"]]
        return result


def number_tokens(tokenizer: Tokenizer, rows: int) -> Numbering:
    """The numbering for a model of `rows` embeddings; ours, if BOS, EOS and the bytes are where run.c looks for them.

    Raises ExportError for a tokenizer that run.c has no place for.
    """
    if (tokenizer.spec.get("model") or {}).get("type") != "BPE" or tokenizer.kind == "other":
        raise _refuse("it is not a byte-level or sentencepiece kind of BPE")
    bos = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if bos is None:
        raise _refuse("it has neither BOS nor EOS, and run.c begins each text with BOS")
    fixed = {BOS: bos} | {FIRST_BYTE + byte: index for byte, index in enumerate(_find_bytes(tokenizer))}
    if tokenizer.eos_id is not None and tokenizer.eos_id != bos:
        fixed[EOS] = tokenizer.eos_id
    if tokenizer.unk_id is not None and tokenizer.unk_id not in fixed.values():
        fixed[0] = tokenizer.unk_id
    taken = set(fixed.values())
    # The rest keep their order, in the places that are left.
    rest = iter([index for index in range(rows) if index not in taken])
    return Numbering([fixed[new] if new in fixed else next(rest) for new in range(rows)])


def _find_bytes(tokenizer: Tokenizer) -> list[int]:
    """The id of the token of each single byte."""
    vocabulary = tokenizer.raw.get_vocab(with_added_tokens=False)
    spellings = byte_alphabet() if tokenizer.kind == "byte-level" else [f"<0x{byte:02X}>" for byte in range(256)]
    missing = next((byte for byte, spelling in enumerate(spellings) if spelling not in vocabulary), None)
    if missing is not None:
        raise _refuse(f"it has no token for the byte 0x{missing:02X}, and run.c needs one for each")
    return [vocabulary[spelling] for spelling in spellings]


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's `bytes_to_unicode`)."""
    kept = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


def bytes_of(tokenizer: Tokenizer, token: str) -> bytes:
    """What a token stands for, with a space for each ▁; a byte of a sentencepiece vocabulary keeps its spelling."""
    if tokenizer.kind != "byte-level":
        return token.replace("▁", " ").encode()
    alphabet = {character: byte for byte, character in enumerate(byte_alphabet())}
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def _refuse(reason: str) -> ExportError:
    return ExportError(
        f"the model's tokenizer cannot be written for llama2.c: {reason}; write --format hf, which holds every tokenizer"
    )
