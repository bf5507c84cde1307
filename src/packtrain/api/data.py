"""Decides how text and datasets are worked on in Python: `prepare` and the verbs that take a dataset."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packtrain.api.settings import Settings, to_words
from packtrain.api.target import is_dataset
from packtrain.errors import ConfigError

if TYPE_CHECKING:
    from packtrain.data.diff import Difference
    from packtrain.data.tokens.tokenizer import Tokenizer
    from packtrain.prepare.run import Prepared
    from packtrain.prepare.verify import Verified
    from packtrain.report.comparison import RunDifference

    Progress = Callable[[int, int], None]


def prepare(recipe: str | Path, *settings: Settings, out: str | Path, on_progress: Progress | None = None) -> Prepared:
    """Turns text into a dataset in `out` (a folder or fsspec URL): clean, deduplicate, split, tokenize.

    `recipe` is a recipe's name, a TOML file, or a path to text, whose kind is found by looking. Continues
    where it was stopped; the files are the same for any number of
    workers. Returns `where`, `manifest` (with the ledger of every document, byte and token) and `was_finished`.
    `on_progress` gets documents done and in all. Workers are processes: in a script, call it under
    `if __name__ == "__main__":`, or set prepare.workers=1. Raises ConfigError, SourceError, TokenizerError, DatasetError,
    DiskFullError, and Interrupted on Ctrl-C.
    """
    from packtrain.config.load import load_recipe
    from packtrain.prepare.run import prepare as prepare_dataset
    from packtrain.prepare.sources.looking import resolve_target

    name, words, _ = resolve_target(str(recipe), to_words(settings))
    return prepare_dataset(load_recipe(name, words).config, out, on_progress=on_progress)


def estimate(recipe: str | Path, *settings: Settings, on_progress: Progress | None = None) -> dict[str, Any]:
    """Estimates the tokens, disk, hours and copies of a dataset from a sample, and writes nothing: `prepare --dry-run --json`."""
    from packtrain.config.load import load_recipe
    from packtrain.prepare.estimate import estimate as estimate_dataset

    return estimate_dataset(load_recipe(str(recipe), to_words(settings)).config, on_progress)


def train_tokenizer(
    recipe: str | Path, *settings: Settings, out: str | Path, on_progress: Progress | None = None
) -> Tokenizer:
    """Trains a byte-level BPE of tokenizer.vocab_size ids on a recipe's training documents, and saves it in `out`.

    Raises TokenizerError if the recipe names a tokenizer, or if `out` already has one.
    """
    from packtrain.config.load import load_recipe
    from packtrain.prepare.run import prepare_tokenizer

    return prepare_tokenizer(load_recipe(str(recipe), to_words(settings)).config, out, on_progress=on_progress)


def import_dataset(
    path: str | Path,
    *settings: Settings,
    format: Literal["nanogpt", "llmc", "megatron", "datatrove"],
    tokenizer: str | Path,
    out: str | Path,
    eot: int | Literal["none"] | None = None,
    split: Literal["auto", "content", "files"] = "auto",
    on_progress: Progress | None = None,
) -> Prepared:
    """Makes a dataset from another program's token files, whose ids and documents stay as they are.

    `eot`: the id between documents ("none" if there is none), by default the tokenizer's EOS. `split`: by content, or by the
    names of the files; "auto" takes the names if they say it. Raises ConfigError, SourceError, TokenizerError, DatasetError.
    """
    from packtrain.api.importing import complete_recipe
    from packtrain.prepare.run import prepare as prepare_dataset

    boundary = None if eot is None else str(eot)
    recipe, _ = complete_recipe(str(path), format, str(tokenizer), to_words(settings), boundary, split)
    return prepare_dataset(recipe, out, on_progress=on_progress)


def verify(
    dataset: str | Path,
    *,
    rebuild: int = 0,
    source: str | None = None,
    on_progress: Progress | None = None,
) -> Verified:
    """Hashes every file of a dataset again, and checks indexes, ids and document borders.

    `rebuild`: that many random slices are made again from the source (now at `source`, if it was moved) and compared byte by
    byte. Returns what was checked. Raises DatasetError that names the first wrong shard, and says why.
    """
    from packtrain.prepare.verify import verify as verify_dataset

    if source is not None and not rebuild:
        raise ConfigError(f"source={source} is used only with rebuild; add rebuild=1, or leave it out")
    return verify_dataset(Path(dataset), rebuild=rebuild, source_path=source, on_progress=on_progress)


def diff(a: str | Path, b: str | Path) -> Difference | RunDifference:
    """Compares two datasets by content, or two runs.

    Of datasets: documents the same, only in one, moved or retokenized, and the settings that explain it; `is_equal` says whether
    both have the same documents with the same ids on the same sides. Of runs: their settings, data, machine and results. Raises
    ConfigError if one is a run and the other is not, DatasetError and RunError.
    """
    from packtrain.runs.listing import looks_like_run

    first, second = Path(a), Path(b)
    are_runs = [looks_like_run(each) for each in (first, second)]
    if all(are_runs):
        from packtrain.report.comparison import compare_runs

        return compare_runs(first, second)
    if any(are_runs):
        run, other = (first, second) if are_runs[0] else (second, first)
        what = "a dataset" if is_dataset(other) else "neither a run nor a dataset"
        raise ConfigError(
            f"{run} is a run and {other} is {what}; compare two runs or two datasets, or see the data of the run with "
            f"`packtrain inspect {shlex.quote(str(run))}`"
        )
    from packtrain.data.diff import compare
    from packtrain.data.format.shards import open_dataset

    return compare(open_dataset(first), open_dataset(second))
