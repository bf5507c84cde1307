"""Decides how a tokenizer is written for llama.cpp: which of its kinds it is, and what is said of each token; or why it cannot be."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import ExportError
from packtrain.export.scores import find_unlisted_merge, merges_of, score_tokens
from packtrain.pretrained.conditions import Conditions
from packtrain.pretrained.gguf_layout import PRE_TOKENIZERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""What `tokenizer.ggml.token_type` says of a token."""
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_INSTEAD = "write --format hf, which holds every tokenizer"


@dataclass(frozen=True)
class LlamaCppTokenizer:
    """What the file says of the tokenizer. Every row of the embedding has a token; rows beyond the tokenizer's are unused."""

    model: str
    """gpt2: byte-level BPE, by its merges; llama: sentencepiece BPE, by its scores."""
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    add_bos: bool
    add_space_prefix: bool
    unicode_form: Literal["NFC"] | None = None
    """That into which the tokenizer brings a text, and llama.cpp does not."""

    def normalize(self, text: str) -> str:
        """The text in the tokenizer's Unicode form."""
        return text if self.unicode_form is None else unicodedata.normalize(self.unicode_form, text)


def describe_tokenizer(conditions: Conditions, rows: int) -> LlamaCppTokenizer:
    """The tokenizer for a model of `rows` embeddings. Raises ExportError if llama.cpp has no such tokenizer."""
    tokenizer = conditions.tokenizer
    if (tokenizer.spec.get("model") or {}).get("type") != "BPE" or tokenizer.kind == "other":
        kind = (tokenizer.spec.get("model") or {}).get("type")
        raise _refuse(f"its model is {kind}, and only byte-level and sentencepiece kinds of BPE can be written")
    spellings = {index: token for token, index in tokenizer.raw.get_vocab(with_added_tokens=True).items()}
    is_byte_level = tokenizer.kind == "byte-level"
    tokens = [spellings.get(index, f"[PAD{index}]") for index in range(rows)]
    bos_id, eos_id = _ends(tokenizer, rows)
    common: dict[str, Any] = {
        "tokens": tokens,
        "types": [_type_of(tokenizer, index, spellings, is_byte_level) for index in range(rows)],
        "bos_id": bos_id,
        "eos_id": eos_id,
        "unk_id": tokenizer.unk_id,
        "add_bos": conditions.add_bos,
    }
    if is_byte_level:
        _check_byte_level(tokenizer)
        return LlamaCppTokenizer(
            model="gpt2",
            pre=_find_pre(tokenizer),
            scores=None,
            merges=[" ".join(pair) for pair in merges_of(tokenizer)],
            add_space_prefix=False,
            unicode_form=_unicode_form(tokenizer),
            **common,
        )
    scores = [*score_tokens(tokenizer), *[0.0] * rows][:rows]
    return LlamaCppTokenizer(
        model="llama", pre="default", scores=scores, merges=None, add_space_prefix=_adds_space(tokenizer), **common
    )


def _type_of(tokenizer: Tokenizer, index: int, spellings: dict[int, str], is_byte_level: bool) -> int:
    if index not in spellings:
        return UNUSED
    if index == tokenizer.unk_id:
        return UNKNOWN
    if index in tokenizer.control_ids:
        return CONTROL
    if any(token["id"] == index for token in tokenizer.added_tokens):
        return USER_DEFINED
    return BYTE if not is_byte_level and _BYTE_TOKEN.fullmatch(spellings[index]) else NORMAL


def _ends(tokenizer: Tokenizer, rows: int) -> tuple[int | None, int | None]:
    """The ids for BOS and EOS. llama.cpp has both: a missing key means an id of its own choice, which would end a text."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    if bos is None and eos is None:
        if rows == tokenizer.vocab_size:
            raise _refuse(
                "it has neither BOS nor EOS, and llama.cpp would take an ordinary token for the end of a text"
            )
        return rows - 1, rows - 1
    # A document's BOS follows the end of another, and an EOS comes before its beginning.
    return (eos if bos is None else bos), (bos if eos is None else eos)


def _check_byte_level(tokenizer: Tokenizer) -> None:
    model = tokenizer.spec["model"]
    marks = [name for name in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if marks or model.get("byte_fallback"):
        raise _refuse(f"its {marks[0] if marks else 'byte_fallback'} is not one that llama.cpp's byte-level BPE has")


def _find_pre(tokenizer: Tokenizer) -> str:
    """llama.cpp's name of the way in which the tokenizer cuts a text into words."""
    before = tokenizer.spec.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", []) if before.get("type") == "Sequence" else [before]
    ignores = bool(tokenizer.spec["model"].get("ignore_merges"))
    for name, known in PRE_TOKENIZERS.items():
        is_same = len(steps) == len(known.steps) and all(
            # A tokenizer.json also says how offsets are trimmed, which changes no id.
            expected.items() <= found.items()
            for expected, found in zip(known.steps, steps, strict=True)
        )
        if is_same and ignores == known.ignores_merges:
            return name
    raise _refuse("llama.cpp has no pre-tokenizer that cuts a text into the same words as far as packtrain knows")


def _unicode_form(tokenizer: Tokenizer) -> Literal["NFC"] | None:
    """The normalization that llama.cpp lacks, if it is one that most texts have already."""
    normalizer = tokenizer.spec.get("normalizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    forms = [step["type"] for step in steps]
    if not forms:
        return None
    if forms != ["NFC"]:
        raise _refuse(f"it normalizes texts by {', '.join(forms)}, and llama.cpp does not")
    return "NFC"


def _adds_space(tokenizer: Tokenizer) -> bool:
    """Whether a space comes before each text. Raises ExportError for what llama.cpp's sentencepiece tokenizer does otherwise."""
    vocabulary = tokenizer.raw.get_vocab(with_added_tokens=False)
    if any(f"<0x{byte:02X}>" not in vocabulary for byte in range(256)):
        raise _refuse("it has no token for each single byte, and llama.cpp would fail on a text that needs one")
    pair = find_unlisted_merge(tokenizer)
    if pair is not None:
        raise _refuse(
            f"it never merges {pair[0]!r} and {pair[1]!r}, though {pair[0] + pair[1]!r} is a token; llama.cpp would"
        )
    normalizer, before = tokenizer.spec.get("normalizer") or {}, tokenizer.spec.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    replaces = [step for step in steps if step.get("type") == "Replace" and step.get("content") == "▁"]
    prepends = [step for step in steps if step == {"type": "Prepend", "prepend": "▁"}]
    if len(replaces) + len(prepends) == len(steps) and len(replaces) == 1 and before is None:
        return bool(prepends)
    if before is not None and before.get("type") == "Metaspace" and not steps:
        return before.get("prepend_scheme", "always") != "never"
    raise _refuse("it prepares a text otherwise than sentencepiece does")


def _refuse(reason: str) -> ExportError:
    return ExportError(f"the model's tokenizer cannot be written as GGUF: {reason}; {_INSTEAD}")
