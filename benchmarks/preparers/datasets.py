"""The usual recipe with Hugging Face datasets: transformers' fast tokenizer within `map(batched=True, num_proc=N)`, `save_to_disk`."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from benchmarks.preparers.datasets_tuned import outcome, write

__all__ = ["outcome", "prepare"]


def prepare(text: Path, tokenizer: Path, workers: int, out: Path) -> None:
    """Write an Arrow dataset with a list of ids and an attention mask per document."""
    opened = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"), split_special_tokens=True)

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        return opened(batch["text"])

    write(text, encode, workers, out)
