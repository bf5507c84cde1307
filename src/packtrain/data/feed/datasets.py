"""Decides what a run is trained on: one prepared dataset, or a mixture of several that fit each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packtrain.config.data import DataConfig, MixedDataset
from packtrain.data.feed.interleave import MAX_CYCLE, whole_weights
from packtrain.data.feed.mixture import Mixture, Share, combined_hash
from packtrain.data.format.manifest import TokenizerInfo
from packtrain.data.format.shards import Dataset, open_dataset
from packtrain.data.rows.pack import Packing, plan
from packtrain.data.rows.plan import Layout
from packtrain.errors import ConfigError, DatasetError, TokenizerError


@dataclass(frozen=True)
class RunDataset:
    """A dataset of a run."""

    name: str
    """What figures about it are called: the folder's own name, or, where two have the same, all of its path."""
    dataset: Dataset
    weight: int
    """Its share is this over the sum of all weights."""
    max_epochs: float | None
    """Times that it may be seen; None for no limit."""


@dataclass(frozen=True)
class Outlook:
    """What a run of a given length sees of a source."""

    name: str
    share: float
    rows: int
    """Of one epoch."""
    seen: int
    """Rows, over all epochs."""
    last_step: int | None
    """The step that sees the last that the source may give; None where the run ends before."""

    @property
    def epochs(self) -> float:
        return self.seen / self.rows

    def __str__(self) -> str:
        end = "" if self.last_step is None else f", used up at step {self.last_step:,}"
        return f"{self.name}: {self.share:.2%} of the tokens, seen {self.epochs:.2f} times{end}"


class RunDatasets:
    """The datasets of a run, the weightiest first: the order in which they are named has no influence on anything."""

    def __init__(self, parts: Sequence[RunDataset]) -> None:
        self.parts = tuple(parts)
        self.hash = combined_hash([(s.dataset.manifest.hash, s.weight, s.max_epochs) for s in self.parts])
        """Stands for the datasets, their weights and limits; one dataset's own, where there is but one."""

    @property
    def tokenizer(self) -> TokenizerInfo:
        """What made the ids, the same for all."""
        return self.parts[0].dataset.manifest.tokenizer

    @property
    def tokenizer_folder(self) -> Path:
        return self.parts[0].dataset.tokenizer_folder

    @property
    def name(self) -> str:
        """The datasets in words, for errors."""
        return " and ".join(str(source.dataset.folder) for source in self.parts)

    def share(self, source: RunDataset) -> float:
        """The part of all tokens that is asked of a source, while it has not been used up."""
        return source.weight / sum(part.weight for part in self.parts)

    def layout(self, seq_len: int, packing: Packing) -> Layout:
        """The rows that a run trains on: those of the training splits. Raises DatasetError for one without a token."""
        shares = [
            Share(plan(source.dataset.split("train"), seq_len, packing), source.weight, source.max_epochs)
            for source in self.parts
        ]
        return shares[0].plan if len(shares) == 1 and shares[0].max_epochs is None else Mixture(shares)

    def outlook(self, layout: Layout, rows_per_step: int, num_steps: int) -> list[Outlook]:
        """What a run sees of each source, with `layout` this one's."""
        outlooks = []
        for part, (source, rows) in enumerate(zip(self.parts, layout.parts, strict=True)):
            seen = layout.seen_by(part, num_steps * rows_per_step)
            # Where the next row would stand, had the source one.
            place = int(layout.places_of(part, np.array([seen]))[0])
            last = int(layout.places_of(part, np.array([seen - 1]))[0]) if place < 0 else None
            last_step = None if last is None else last // rows_per_step + 1
            outlooks.append(Outlook(source.name, self.share(source), rows.num_rows, seen, last_step))
        return outlooks


def open_sources(config: DataConfig) -> RunDatasets:
    """The datasets that data.dataset names, opened.

    Raises ConfigError where none is named or a weight is too small, DatasetError where one is not whole or named twice,
    TokenizerError where two were made by different tokenizers.
    """
    named = config.dataset
    if named is None:
        raise ConfigError("no dataset is named; write data.dataset=FOLDER, a folder that `packtrain prepare` wrote")
    if isinstance(named, str):
        named = (MixedDataset(folder=named, weight=1),)
    weights = whole_weights([entry.weight for entry in named])
    if weights is None:
        least = min(named, key=lambda entry: entry.weight)
        raise ConfigError(
            f"data.dataset gives {least.folder} a weight of {least.weight:g}, less than one part in {MAX_CYCLE:,} of all; "
            "raise it, or leave the dataset out"
        )
    datasets = [open_dataset(Path(entry.folder)) for entry in named]
    _check_fit(datasets)
    names = _names([entry.folder for entry in named])
    parts = [
        RunDataset(name, dataset, weight, entry.max_epochs)
        for name, dataset, weight, entry in zip(names, datasets, weights, named, strict=True)
    ]
    return RunDatasets(sorted(parts, key=lambda source: (-source.weight, source.dataset.manifest.hash)))


def one_source(dataset: Dataset) -> RunDatasets:
    """A single dataset as a run's sources."""
    return RunDatasets([RunDataset(_names([str(dataset.folder)])[0], dataset, 1, None)])


def _check_fit(datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    seen: dict[str, Dataset] = {}
    for dataset in datasets:
        tokenizer, expected = dataset.manifest.tokenizer, first.manifest.tokenizer
        if tokenizer.hash != expected.hash:
            raise TokenizerError(
                f"{dataset.folder} was prepared with another tokenizer (hash {tokenizer.hash[:12]}) than {first.folder} "
                f"({expected.hash[:12]}); prepare it again with tokenizer.name={first.tokenizer_folder}"
            )
        if (tokenizer.adds_bos, tokenizer.adds_eos) != (expected.adds_bos, expected.adds_eos):
            raise TokenizerError(
                f"{dataset.folder} and {first.folder} do not put the same control tokens around documents; prepare one of "
                "them again with the tokenizer.bos and tokenizer.eos of the other"
            )
        known = seen.setdefault(dataset.manifest.hash, dataset)
        if known is not dataset:
            raise DatasetError(
                f"{known.folder} and {dataset.folder} are the same dataset (hash {dataset.manifest.hash[:12]}); name it "
                "once in data.dataset, with the sum of the weights"
            )


def _names(folders: Sequence[str]) -> list[str]:
    short = [Path(folder).resolve().name for folder in folders]
    return [name if short.count(name) == 1 else folder for name, folder in zip(short, folders, strict=True)]
