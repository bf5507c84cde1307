"""datatrove's tokenization pipeline with its own defaults, which shuffle the documents of each file."""

from pathlib import Path

from benchmarks.preparers.datatrove_tuned import outcome, write

__all__ = ["outcome", "prepare"]


def prepare(text: Path, tokenizer: Path, workers: int, out: Path) -> dict[str, None]:
    """Write .ds files of ids with .ds.index files of document ends."""
    return write(text, tokenizer, workers, out)
