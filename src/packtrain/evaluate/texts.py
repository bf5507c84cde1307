"""Decides which documents are scored by themselves: held-out ones of a dataset, in its ids or encoded again, or those of a file."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from packtrain.data.format.shards import Dataset
from packtrain.data.rows.index import DocumentIndex
from packtrain.data.rows.order import order_key, permute
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import SourceError, TokenizerError
from packtrain.evaluate.documents import Document
from packtrain.evaluate.loss import prefix_length
from packtrain.storage.files import open_stream, reading, strip_compression

# Independent of any run and tokenizer, so that all models are measured on the same documents.
_KEY = order_key(0, 0, "held-out documents")
_BLOCK = 65_536
_JSONL = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Text:
    """Documents to score, with their text for methods that read bytes."""

    documents: list[Document]
    texts: Sequence[bytes]
    """UTF-8, one for each document."""
    coverage: str
    """What was chosen of what there is, for people."""

    @property
    def num_tokens(self) -> int:
        return sum(len(document.ids) for document in self.documents)

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.texts))


def is_same_tokenizer(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether both give the same ids to the same text. What `export` adds for transformers makes no difference."""
    return first.hash == second.hash or (_core(first) == _core(second) and _ends(first) == _ends(second))


def choose_documents(
    dataset: Dataset, own: Tokenizer, tokenizer: Tokenizer, *, add_bos: bool, tokens: int | None
) -> Text:
    """Held-out documents of a dataset, at most `tokens` of its tokens (None: all) and at least one document, as a model reads them.

    `own` is the dataset's tokenizer. A model with the same gets the ids as they are. For another, the text is decoded and
    encoded again, after BOS if `add_bos`, and before EOS if the documents of the dataset end with one: so both predict the
    same, and their bits per byte compare. Which documents are chosen does not depend on the model.
    """
    split = dataset.split("validation")
    index = DocumentIndex(split)
    chosen = _draw(index, split.num_tokens, tokens)
    spans = zip(index.starts(chosen).tolist(), index.ends(chosen).tolist(), strict=True)
    stored = [np.asarray(split.read(start, end), dtype=np.int64) for start, end in spans]
    texts = [own.decode(ids.tolist()).encode() for ids in stored]
    info = dataset.manifest.tokenizer
    if is_same_tokenizer(own, tokenizer):
        token_bytes, prefix = own.token_bytes(), prefix_length(own)
        before = own.eos_id if info.adds_eos else None
        documents = [
            Document(
                ids[1:] if info.adds_bos else ids,
                int(ids[0]) if info.adds_bos else before,
                max(0, int(token_bytes[ids].sum()) - prefix),
            )
            for ids in stored
        ]
    else:
        end = tokenizer.eos_id if info.adds_eos else None
        documents = encode_documents(tokenizer, texts, add_bos=add_bos, end=end)
    words = f"{len(chosen):,} of {len(index):,}" if len(chosen) < len(index) else f"all {len(index):,}"
    again = "" if is_same_tokenizer(own, tokenizer) else ", encoded again with the model's tokenizer"
    return Text(documents, texts, f"{words} held-out documents of {dataset.folder.resolve().name}{again}")


def encode_documents(tokenizer: Tokenizer, texts: Sequence[bytes], *, add_bos: bool, end: int | None) -> list[Document]:
    """Texts as a model reads them: after BOS, or else after the EOS of what came before, and before `end` if it is given."""
    if add_bos and tokenizer.bos_id is None:
        raise TokenizerError(
            "the model reads a begin-of-text token first, but its tokenizer has none; give its own tokenizer"
        )
    start = tokenizer.bos_id if add_bos else tokenizer.eos_id
    last = [] if end is None else [end]
    encoded = tokenizer.encode_batch([text.decode() for text in texts])
    return [
        Document(np.array([*ids, *last], dtype=np.int64), start, len(text))
        for ids, text in zip(encoded, texts, strict=True)
    ]


def read_text(path: Path, *, separator: str | None, column: str) -> list[bytes]:
    """The documents of a file: of jsonl, the `column` of each line; of other text, all of it, or what `separator` leaves.

    The file may be compressed (.gz, .zst). Raises SourceError if it is missing, is not UTF-8 or has no text.
    """
    if not path.is_file():
        raise SourceError(f"--text {path} is not a file; give a text file, or a .jsonl file with a text in each line")
    is_jsonl = strip_compression(path.name.lower()).endswith(_JSONL)
    if is_jsonl and separator is not None:
        raise SourceError(f"{path} is jsonl, whose lines are its documents; leave out --separator")
    try:
        with reading(str(path)), open_stream(str(path)) as stream:
            data = stream.read()
    except SourceError as error:
        # What a preparation could do instead does not help here.
        raise SourceError(f"{str(error).partition(';')[0]}; give --text another file") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path} is not UTF-8: byte {error.start:,}, in line {line:,}, does not fit; convert it (iconv -f OLD -t UTF-8)"
        ) from None
    found = _read_lines(path, text, column) if is_jsonl else text.split(separator) if separator else [text]
    documents = [document.encode() for document in found if document.strip()]
    if not documents:
        raise SourceError(f"{path} has no text; give a file with some")
    return documents


def hash_text(texts: Sequence[bytes]) -> str:
    """Names the text of a file: the same documents give the same name."""
    digest = xxhash.xxh3_128()
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def _read_lines(path: Path, text: str, column: str) -> Iterator[str]:
    for number, line in enumerate(io.StringIO(text, newline="\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}, line {number:,}, is not JSON ({error})") from None
        found = record.get(column) if isinstance(record, dict) else None
        if not isinstance(found, str):
            has = f"it has {', '.join(map(str, record))[:100]}" if isinstance(record, dict) else "it is no object"
            raise SourceError(
                f"{path}, line {number:,}, has no text in '{column}' ({has}); name the column with --text-column"
            )
        # JSON can hold half a character.
        yield found.encode("utf-8", "replace").decode()


def _draw(index: DocumentIndex, num_tokens: int, tokens: int | None) -> np.ndarray:
    """Numbers of documents with at most `tokens` tokens in all, ascending; at least one."""
    if tokens is None or num_tokens <= tokens:
        return np.arange(len(index))
    drawn: list[np.ndarray] = []
    total = 0
    for first in range(0, len(index), _BLOCK):
        some = permute(np.arange(first, min(first + _BLOCK, len(index))), len(index), _KEY)
        sums = total + np.cumsum(index.ends(some) - index.starts(some))
        fits = int(np.searchsorted(sums, tokens, side="right"))
        drawn.append(some[:fits])
        if fits < len(some):
            break
        total = int(sums[-1])
    chosen = np.concatenate(drawn)
    return np.sort(chosen if len(chosen) else permute(np.arange(1), len(index), _KEY))


def _core(tokenizer: Tokenizer) -> dict[str, object]:
    spec = json.loads(tokenizer.raw.to_str())
    return {key: value for key, value in spec.items() if key not in ("post_processor", "truncation", "padding")}


def _ends(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    return tokenizer.bos_id, tokenizer.eos_id
