"""Ours with `tokenizer.backend=fast`: a faster library encodes, and a sample of every slice is encoded by `tokenizers` too."""

from pathlib import Path

from benchmarks.preparers import packtrain

outcome = packtrain.outcome


def prepare(text: Path, tokenizer: Path, workers: int, out: Path) -> None:
    """Write a prepared dataset."""
    packtrain.prepare(text, tokenizer, workers, out, backend="fast")
