"""Small sources of every kind, and recipes over them."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from packtrain.config.recipe import Recipe
from packtrain.config.split import SplitConfig
from packtrain.data.format.manifest import canonical_json
from packtrain.prepare.copies.equal import mark_validation

SHARED = Path(__file__).resolve().parents[2] / "shared"
LLAMA2 = SHARED / "llama2-tokenizer"
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "was",
    "for",
    "are",
    "as",
    "with",
    "at",
    "be",
    "from",
    "had",
)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different documents of 5 to 60 words each, some over several lines."""
    draw = random.Random(seed)
    return [
        f"Document {seed}.{number}. "
        + " ".join(draw.choice(WORDS) + draw.choice(["", "", ",", ".\n\t"]) for _ in range(draw.randint(5, 60))).strip()
        for number in range(count)
    ]


def write_jsonl(path: Path, texts: Iterable[Any], key: str = "text") -> Path:
    path.write_text(
        "".join(json.dumps({key: t, "id": f"doc-{i}"}) + "\n" for i, t in enumerate(texts)), encoding="utf-8"
    )
    return path


def recipe(kind: str, path: Path | None = None, **settings: Any) -> Recipe:
    """A recipe over `path`; settings are dotted keys with __ for the dot. A vocabulary of 300 is trained by default."""
    tree: dict[str, Any] = {"source": {"kind": kind}}
    if path is not None:
        tree["source"]["path"] = str(path)
    if "tokenizer__name" not in settings:
        settings.setdefault("tokenizer__vocab_size", 300)
    for key, value in {"prepare__workers": 1, **settings}.items():
        section, name = key.split("__")
        tree.setdefault(section, {})[name] = value
    return Recipe.model_validate(tree)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def texts_of(folder: Path, names: Sequence[str] = ("train", "validation")) -> list[str]:
    """Every document of a dataset, decoded, without control tokens."""
    from packtrain.data.format.manifest import SPLITS
    from packtrain.data.format.shards import open_dataset
    from packtrain.data.tokens.tokenizer import load_tokenizer

    dataset = open_dataset(folder)
    tokenizer = load_tokenizer(dataset.tokenizer_folder)
    texts = []
    for name in SPLITS:
        split = dataset.split(name)
        start = 0
        for end in split.document_ends.tolist() if name in names else []:
            texts.append(tokenizer.decode(split.read(start, end).tolist()))
            start = end
    return texts


def is_validation(content: bytes, config: SplitConfig) -> bool:
    """Whether a document with this content hash is in the validation split."""
    return bool(mark_validation(np.frombuffer(content, np.uint64).reshape(1, 2), config)[0])


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a dataset and its checksum with it, as no one does by hand."""
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    change(tree)
    write_sealed(path, tree)


def write_sealed(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree as a manifest whose checksum fits."""
    tree = {key: value for key, value in tree.items() if key != "checksum"}
    path.write_text(json.dumps({**tree, "checksum": hashlib.sha256(canonical_json(tree)).hexdigest()}))
