"""packtrain, as `packtrain prepare` works: cleaned, deduplicated, split, with the source of every document."""

from pathlib import Path

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import read_manifest
from packtrain.prepare.run import prepare as prepare_dataset


def prepare(text: Path, tokenizer: Path, workers: int, out: Path, backend: str = "tokenizers") -> None:
    """Write a prepared dataset."""
    recipe = {
        "source": {"kind": "parquet", "path": str(text), "id_column": "id"},
        "tokenizer": {"name": str(tokenizer), "backend": backend},
        "prepare": {"workers": workers},
    }
    prepare_dataset(Recipe.model_validate(recipe), out)


def outcome(out: Path) -> tuple[int, int]:
    """Count the documents and tokens written."""
    ledger = read_manifest(out).ledger
    documents = sum(ledger["documents"][name] for name in ("train", "validation"))
    return documents, sum(ledger["tokens"][name] for name in ("train", "validation"))
