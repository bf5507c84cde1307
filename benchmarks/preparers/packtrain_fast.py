"""packtrain with `tokenizer.backend=fast`: a faster library encodes, and `tokenizers` checks a sample of every slice."""

from pathlib import Path

from benchmarks.preparers import packtrain

outcome = packtrain.outcome


def prepare(text: Path, tokenizer: Path, workers: int, out: Path) -> None:
    """Write a prepared dataset."""
    packtrain.prepare(text, tokenizer, workers, out, backend="fast")
