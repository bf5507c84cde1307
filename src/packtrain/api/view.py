"""Decides how `packtrain inspect` sees data: in the rows of a run, or of a dataset under a preset, as its steps see them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packtrain.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from packtrain.config.run import RunConfig
    from packtrain.data.feed.course import Course
    from packtrain.data.feed.datasets import RunDatasets
    from packtrain.data.feed.mixture import Mixture
    from packtrain.data.format.shards import Dataset
    from packtrain.data.inspect import RowView


@dataclass(frozen=True)
class View:
    """Datasets in the rows that a run trains on."""

    target: Path
    sources: RunDatasets
    config: RunConfig
    is_run: bool

    @functools.cached_property
    def layout(self) -> Mixture:
        """The rows that are trained on. Raises DatasetError if a dataset has no text for training."""
        return self.sources.layout(self.config.data.seq_len, self.config.data.packing, self.config.repack_seed)

    @property
    def is_all_validation(self) -> bool:
        """Whether it is a dataset without text for training, so that there are no rows and steps."""
        return not any(source.dataset.split("train").num_tokens for source in self.sources.parts)

    @property
    def num_steps(self) -> int:
        """Length of the run in steps, as configured."""
        return self.config.num_steps(self.layout.num_rows, self.layout.num_places)

    @functools.cached_property
    def course(self) -> Course:
        """Where in the data each step is. After a rollback, or in an annealing run, this is not a multiple of the steps."""
        if self.is_run:
            from packtrain.runs.layout import RunLayout
            from packtrain.train.rollback import trace_course

            run = RunLayout(self.target)
            return trace_course(run, rows_per_step=self.config.rows_per_step, num_rows=self.layout.num_rows)
        from packtrain.data.feed.course import Course

        return Course(self.config.rows_per_step)

    @property
    def is_mixed(self) -> bool:
        return len(self.sources.parts) > 1

    def summary(self) -> dict[str, Any]:
        from packtrain.data.inspect import summarize

        described = [_describe(source.dataset) for source in self.sources.parts]
        if self.is_all_validation:
            return described[0] | {"plan": None}
        common = {
            "dataset_hash": self.sources.hash,
            "plan": summarize(self.layout),
            "seed": self.config.train.seed,
            "rows_per_step": self.config.rows_per_step,
            "num_steps": self.num_steps,
        }
        if not self.is_mixed:
            return described[0] | common
        seen = self.sources.outlook(self.layout, self.config.rows_per_step, self.num_steps)
        shares = [
            {"name": s.name, "share": s.share, "rows": s.rows, "epochs": s.epochs, "last_step": s.last_step}
            for s in seen
        ]
        return {"datasets": [share | facts for share, facts in zip(shares, described, strict=True)], **common}

    def rows_of_step(self, step: int) -> list[int]:
        from packtrain.data.feed.loader import step_rows

        if step < 1:
            raise ConfigError(f"--step {step} does not exist; steps count from 1, so write --step 1 or more")
        count, num_places = self.config.rows_per_step, self.layout.num_places
        place = self.course.place_of(step)
        if num_places is not None and place + count > num_places:
            after, start = self.course.turns[-1]
            raise ConfigError(
                f"--step {step} does not exist: the data ends with step {after + (num_places - start) // count} (max_epochs "
                "of data.dataset); write a lower one"
            )
        return step_rows(self.layout, self.config.train.seed, place, count).tolist()

    def checked_row(self, row: int) -> int:
        num_rows = self.layout.num_rows
        if self.config.data.repack:
            # Each epoch has rows of its own.
            num_rows *= math.ceil(self.num_steps * self.config.rows_per_step / num_rows)
        if not 0 <= row < num_rows:
            raise ConfigError(f"--row {row} does not exist; this plan has rows 0 to {num_rows - 1}")
        return row

    def num_targets(self, rows: list[int]) -> int:
        import numpy as np

        return int(self.layout.row_targets(np.array(rows, dtype=np.int64)).sum())

    def describe(self, rows: list[int]) -> list[RowView]:
        from packtrain.data.inspect import describe_mixed_rows
        from packtrain.data.tokens.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(self.sources.tokenizer_folder)
        mask = self.config.data.document_mask
        return describe_mixed_rows(self.sources, self.layout, tokenizer, rows, document_mask=mask)


def _describe(dataset: Dataset) -> dict[str, Any]:
    splits = {}
    for name in ("train", "validation"):
        split = dataset.split(name)
        splits[name] = {
            "documents": split.num_documents,
            "tokens": split.num_tokens,
            "utf8_bytes": split.utf8_bytes,
            "shards": len(split.shards),
        }
    return {
        "dataset": str(dataset.folder),
        "dataset_hash": dataset.manifest.hash,
        "splits": splits,
        "ledger": dataset.manifest.ledger,
        "length_histogram": dataset.manifest.length_histogram,
    }


def open_view(target: Path, preset: str, settings: list[str]) -> View:
    """A run's data as its files say, or a dataset's as a run with `preset` and `settings` would see it."""
    from packtrain.config.load import load_run_config
    from packtrain.data.feed.datasets import as_run_datasets
    from packtrain.data.format.content import check_what_is_read
    from packtrain.data.format.shards import open_dataset
    from packtrain.runs.configuration import newest_config
    from packtrain.runs.layout import RunLayout
    from packtrain.runs.manifest import read_manifest, reopen_run_datasets

    run = RunLayout(target)
    if not run.config.is_file():
        config = load_run_config(preset, settings).config
        sources = as_run_datasets(open_dataset(target))
    elif settings:
        raise ConfigError(f"{target} is a run, whose settings are fixed; leave out '{settings[0]}'")
    else:
        config = newest_config(run)
        manifest = read_manifest(run) if run.manifest.is_file() else {}
        sources = reopen_run_datasets(config, manifest, target)
        if manifest.get("dataset", {}).get("hash", sources.hash) != sources.hash:
            raise DatasetError(
                f"{sources.name} has changed since {target} was trained on it; put the old dataset back to inspect the run"
            )
    for source in sources.parts if config.data.verify != "none" else ():
        check_what_is_read(source.dataset)
    return View(target, sources, config, run.config.is_file())
