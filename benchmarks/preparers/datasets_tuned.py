"""Hugging Face datasets with the fastest call of `tokenizers`: `load_dataset`, `map(batched=True, num_proc=N)`, `save_to_disk`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from tokenizers import Tokenizer


def prepare(text: Path, tokenizer: Path, workers: int, out: Path) -> None:
    """Write an Arrow dataset with a list of ids per document."""
    opened = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    opened.encode_special_tokens = True

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": [encoding.ids for encoding in opened.encode_batch_fast(batch["text"])]}

    write(text, encode, workers, out)


def write(text: Path, encode: Callable[[dict[str, Any]], dict[str, Any]], workers: int, out: Path) -> None:
    """Load, map and save: the part that does not depend on how the tokenizer is called."""
    files = [str(path) for path in sorted(text.glob("*.parquet"))]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(out / "cache"))
    encoded = loaded.map(encode, batched=True, num_proc=workers, remove_columns=loaded.column_names)
    encoded.save_to_disk(str(out / "saved"), num_proc=workers)


def outcome(out: Path) -> tuple[int, int]:
    """Count the documents and tokens written."""
    saved = datasets.load_from_disk(str(out / "saved"))
    return len(saved), sum(len(ids) for batch in saved.with_format("arrow").iter(1000) for ids in batch["input_ids"])
