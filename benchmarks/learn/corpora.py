"""Decides what a named corpus is: how it is prepared, how its held-out text is scored, and by which hash it is known."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NAMES = ("stdlib", "prose", "shakespeare")
_FILES = {"prose": "sotu.jsonl", "shakespeare": "tinyshakespeare.txt"}


@dataclass(frozen=True)
class Corpus:
    """A prepared dataset with its held-out documents."""

    name: str
    folder: Path
    dataset: str
    """Hash of its manifest."""
    held_out: str
    """Hash of the held-out documents' text, which does not depend on the tokenizer: figures with the same hash compare."""
    documents: int
    held_out_bytes: int
    train_tokens: int
    recipe: tuple[str, ...]
    """What was typed beside the name."""
    overlap: int | None
    """Tokens that a window repeats; None: half of it."""
    share_of_text: float | None = None
    """Of the training text of a small corpus; None for the others."""

    def record(self) -> dict[str, Any]:
        """What a line of results says of it."""
        return {key: value for key, value in asdict(self).items() if key not in ("folder", "overlap")}


def prepare_corpus(name: str, work: Path, data: Path | None, recipe: Sequence[str] = ()) -> Corpus:
    """The corpus `name`, or the prepared dataset of that path. Prepared in `work` unless it is there already.

    `data` is the folder of the published texts, or the file itself. Raises ConfigError for an unknown name or a missing file.
    """
    from packtrain.config.load import load_recipe
    from packtrain.prepare.run import prepare

    if name not in NAMES:
        return describe_corpus(name, _find_dataset(name, recipe), recipe)
    source = find_source(name, data) if name in _FILES else None
    content = hashlib.sha256(source.read_bytes()).hexdigest() if source else ""
    key = hashlib.sha256(json.dumps([name, content, list(recipe)]).encode()).hexdigest()[:12]
    folder = work / "data" / f"{name}-{key}"
    if name == "shakespeare":
        from benchmarks.yardsticks import prepare_shakespeare

        assert source is not None
        prepare_shakespeare(source, folder, recipe)
        return describe_corpus(name, folder / "dataset", recipe, overlap=0)
    # One of ten documents is held out by a hash of its text: the split is the same on every machine.
    fixed = ["source.id_column=id", f"source.path={source}", "tokenizer.vocab_size=4096"] if source else []
    prepare(load_recipe("jsonl" if source else "stdlib", [*fixed, *recipe]).config, folder)
    return describe_corpus(name, folder, recipe)


def _find_dataset(name: str, recipe: Sequence[str]) -> Path:
    from packtrain.errors import ConfigError

    if not (Path(name) / "manifest.json").is_file():
        raise ConfigError(f"there is no corpus '{name}'; write {', '.join(NAMES)}, or the folder of a prepared dataset")
    if recipe:
        raise ConfigError(f"{name} is prepared already, so {recipe[0]} has no effect; leave out --prepare")
    return Path(name)


def find_source(name: str, data: Path | None) -> Path:
    """The file of a corpus in `data`, or `data` itself. Raises ConfigError if it is missing."""
    from packtrain.errors import ConfigError

    if data is None:
        raise ConfigError(f"the corpus {name} needs {_FILES[name]}; write --data with the folder that has it")
    found = data / _FILES[name] if data.is_dir() else data
    if not found.is_file():
        raise ConfigError(f"{found} is not a file; write --data with the folder that has {_FILES[name]}")
    return found.resolve()


def describe_corpus(name: str, folder: Path, recipe: Sequence[str], overlap: int | None = None) -> Corpus:
    """The corpus of a prepared dataset. Raises DatasetError if it has nothing held out."""
    from packtrain.data.format.shards import open_dataset
    from packtrain.errors import DatasetError
    from packtrain.evaluate.texts import hash_text

    dataset = open_dataset(folder)
    text = read_held_out(folder)
    if not text.documents:
        raise DatasetError(f"{folder} has no held-out documents; prepare it with split.validation_fraction=0.1")
    return Corpus(
        name=folder.resolve().name if name not in NAMES else name,
        folder=folder.resolve(),
        dataset=dataset.manifest.hash,
        held_out=hash_text(sorted(text.texts)),
        documents=len(text.documents),
        held_out_bytes=text.num_bytes,
        train_tokens=dataset.split("train").num_tokens,
        recipe=tuple(recipe),
        overlap=overlap,
    )


def read_held_out(folder: Path) -> Any:
    """All held-out documents of a dataset in its own tokens: a packtrain.evaluate.texts.Text."""
    from packtrain.data.format.shards import open_dataset
    from packtrain.data.tokens.tokenizer import load_tokenizer
    from packtrain.evaluate.texts import choose_documents

    dataset, tokenizer = open_dataset(folder), load_tokenizer(folder / "tokenizer")
    return choose_documents(dataset, tokenizer, tokenizer, add_bos=dataset.manifest.tokenizer.adds_bos, tokens=None)
