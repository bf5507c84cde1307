"""Decides what a run is trained on: one prepared dataset, or a mixture of several that fit together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packtrain.config.data import DataConfig, MixedDataset, VerifyMode
from packtrain.data.feed.interleave import MAX_CYCLE, whole_weights
from packtrain.data.feed.mixture import Mixture, Share, combine_hashes
from packtrain.data.format.content import SAMPLE_BYTES, check_content
from packtrain.data.format.manifest import SPLITS, SplitName, TokenizerInfo
from packtrain.data.format.shards import Dataset, open_dataset
from packtrain.data.rows.pack import Packing, plan
from packtrain.data.rows.repack import RepackedPlan
from packtrain.errors import ConfigError, DatasetError, TokenizerError


@dataclass(frozen=True)
class RunDataset:
    """A dataset of a run."""

    name: str
    """The folder's own name, or all of its path if two have the same name."""
    dataset: Dataset
    weight: int
    """Its share of the tokens is this over the sum of all weights."""
    max_epochs: float | None
    """How many times it may be seen; None for no limit."""


@dataclass(frozen=True)
class Outlook:
    """What a run of a given length sees of a dataset."""

    name: str
    share: float
    rows: int
    """In one epoch."""
    seen: int
    """Rows, over all epochs."""
    last_step: int | None
    """The step that uses the dataset up; None if the run ends before."""

    @property
    def epochs(self) -> float:
        return self.seen / self.rows

    def __str__(self) -> str:
        end = "" if self.last_step is None else f", used up at step {self.last_step:,}"
        return f"{self.name}: {self.share:.2%} of the tokens, seen {self.epochs:.2f} times{end}"


class RunDatasets:
    """The datasets of a run, the largest weight first, so that the order in which they are named has no effect."""

    def __init__(self, parts: Sequence[RunDataset]) -> None:
        self.parts = tuple(parts)
        self.hash = combine_hashes([(s.dataset.manifest.hash, s.weight, s.max_epochs) for s in self.parts])
        """Of the datasets, their weights and limits; a single dataset keeps its own hash."""

    @property
    def tokenizer(self) -> TokenizerInfo:
        """The tokenizer that made the ids, the same for all."""
        return self.parts[0].dataset.manifest.tokenizer

    @property
    def tokenizer_folder(self) -> Path:
        return self.parts[0].dataset.tokenizer_folder

    @property
    def name(self) -> str:
        """The folders of the datasets, for errors."""
        return " and ".join(str(part.dataset.folder) for part in self.parts)

    def share(self, part: RunDataset) -> float:
        """The share of all tokens that a dataset gives, until it is used up."""
        return part.weight / sum(other.weight for other in self.parts)

    def check_content(
        self,
        mode: VerifyMode,
        *,
        sides: Sequence[SplitName] = SPLITS,
        seed: int | None = None,
        share: tuple[int, int] = (0, 1),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compare files of each dataset with the hashes in its manifest, as `format.content.check_content` does."""
        budget = SAMPLE_BYTES // len(self.parts)
        for part in self.parts:
            check_content(
                part.dataset, mode, sides=sides, seed=seed, budget=budget, share=share, should_stop=should_stop
            )

    def layout(self, seq_len: int, packing: Packing, repack_seed: int | None = None) -> Mixture:
        """The rows that a run trains on; with `repack_seed`, documents are packed again in each epoch.

        Raises DatasetError if the training side of a dataset has no tokens.
        """
        for part in self.parts:
            if not part.dataset.split("train").num_tokens:
                raise DatasetError(
                    f"{part.dataset.folder} has no text for training, as all of it is validation; train on another dataset, and "
                    "measure the run on this one with `packtrain evaluate RUN --dataset FOLDER`"
                )
        plans = [plan(part.dataset.split("train"), seq_len, packing) for part in self.parts]
        if repack_seed is not None:
            plans = [RepackedPlan(first, repack_seed) for first in plans]
        shares = [Share(rows, part.weight, part.max_epochs) for rows, part in zip(plans, self.parts, strict=True)]
        return Mixture(shares)

    def outlook(self, layout: Mixture, rows_per_step: int, num_steps: int) -> list[Outlook]:
        """What a run sees of each dataset; `layout` is what `layout` gave."""
        outlooks = []
        for number, (part, rows) in enumerate(zip(self.parts, layout.parts, strict=True)):
            seen = layout.seen_by(number, num_steps * rows_per_step)
            next_place, last_place = layout.places_of(number, np.array([seen, seen - 1])).tolist()
            last_step = last_place // rows_per_step + 1 if next_place < 0 else None
            outlooks.append(Outlook(part.name, self.share(part), rows.num_rows, seen, last_step))
        return outlooks


def open_run_datasets(config: DataConfig) -> RunDatasets:
    """Open the datasets that data.dataset names.

    Raises ConfigError if none is named or a weight is too small, DatasetError if one is damaged or named twice, and
    TokenizerError if two were made by different tokenizers.
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
            f"data.dataset gives {least.folder} a weight of {least.weight:g}, less than one part in {MAX_CYCLE:,} of the sum; "
            "raise it, or leave the dataset out"
        )
    datasets = [open_dataset(Path(entry.folder)) for entry in named]
    _check_fit(datasets)
    names = _names([entry.folder for entry in named])
    parts = [
        RunDataset(name, dataset, weight, entry.max_epochs)
        for name, dataset, weight, entry in zip(names, datasets, weights, named, strict=True)
    ]
    return RunDatasets(sorted(parts, key=lambda part: (-part.weight, part.dataset.manifest.hash)))


def as_run_datasets(dataset: Dataset) -> RunDatasets:
    """A single dataset as the datasets of a run."""
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
