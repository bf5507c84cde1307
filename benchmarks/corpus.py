"""Decides which text preparation is measured on: real documents of one length, or any amount of recombined lines."""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from packtrain.config.recipe import Recipe
from packtrain.prepare.sources.documents import plan_slices, read_rows
from packtrain.prepare.text.clean import Cleaner

FILES = 4
# As in the Hub's files.
GROUP_DOCUMENTS = 1000
# packtrain treats these as text; some tools cannot, and encode the token itself.
CONTROL = ("<s>", "</s>", "<unk>", "<|bos|>", "<|eos|>")


def cut(source: str, characters: int, size: int, workspace: Path) -> list[str]:
    """Clean documents of about `characters` each and `size` UTF-8 bytes in all, no two of them equal.

    The source (the standard library, or the documents of a jsonl file) is repeated, with a number before each document.
    """
    texts = [text for text in _texts(source, workspace) if not any(token in text for token in CONTROL)]
    pieces = [t[start : start + characters] for t in texts for start in range(0, len(t), characters)]
    # Drop the short ends of documents: the repeated text would have too many of them.
    pieces = [piece for piece in pieces if len(piece) > characters // 2]
    clean = Cleaner(Recipe.model_validate({"source": {"kind": "stdlib"}, "tokenizer": {"vocab_size": 300}}).clean)
    made: list[str] = []
    total = 0
    while total < size:
        text, reason = clean(f"{len(made)} {pieces[len(made) % len(pieces)]}")
        assert reason is None
        made.append(text)
        total += len(text.encode())
    return made


def recombined(source: str, size: int, workspace: Path, seed: int = 0) -> Iterator[str]:
    """Documents of web-like lengths from the source's lines, `size` UTF-8 bytes in all, the same for equal seeds."""
    lines = [line for text in _texts(source, workspace) for line in text.splitlines() if line.strip()]
    draw = random.Random(seed)
    total = 0
    for number in itertools.count():
        if total >= size:
            return
        # A median of 2,300 and a mean of about 4,700 characters, as web pages have; the longest reach a megabyte.
        wanted = min(1 << 20, int(draw.lognormvariate(7.75, 1.2)))
        parts = [str(number)]
        while wanted > 0:
            parts.append(lines[draw.randrange(len(lines))])
            wanted -= len(parts[-1]) + 1
        text = "\n".join(parts)
        total += len(text.encode())
        yield text


def write(texts: Iterable[str], folder: Path, documents_in_file: int) -> None:
    """Write the documents to parquet files, in order, as they arrive."""
    folder.mkdir(parents=True)
    iterator = iter(texts)
    schema = pa.schema([("text", pa.string()), ("id", pa.string())])
    for number in itertools.count():
        group = list(itertools.islice(iterator, min(GROUP_DOCUMENTS, documents_in_file)))
        if not group:
            return
        written = 0
        with pq.ParquetWriter(folder / f"{number:03d}.parquet", schema, compression="zstd") as writer:
            while group:
                ids = [f"{number}-{written + i}" for i in range(len(group))]
                writer.write_table(pa.table({"text": group, "id": ids}, schema=schema))
                written += len(group)
                group = list(itertools.islice(iterator, min(GROUP_DOCUMENTS, documents_in_file - written)))


def _texts(source: str, workspace: Path) -> list[str]:
    if source != "stdlib":
        with Path(source).open() as lines:
            return [json.loads(line)["text"] for line in lines]
    recipe = Recipe.model_validate({"source": {"kind": "stdlib"}, "tokenizer": {"vocab_size": 300}})
    plan = plan_slices(recipe, workspace)
    rows = (row for piece in plan.slices for row in read_rows(piece, recipe.source))
    return [row.text for row in rows if row.text]
