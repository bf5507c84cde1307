"""Decides how a model or a dataset is exported in Python, and uploaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from packtrain.api.target import is_dataset, which_checkpoint
from packtrain.errors import ConfigError

if TYPE_CHECKING:
    from packtrain.export.choose import ExportOptions
    from packtrain.export.dataset import DatasetExport
    from packtrain.export.run import Export


def export(
    target: str | Path,
    *,
    out: str | Path,
    format: str | None = None,
    overwrite: bool = False,
    dataset: str | Path | None = None,
    step: int | None = None,
    best: bool = False,
    last: bool = False,
    average: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Unpack[ExportOptions],
) -> Export | DatasetExport:
    """Writes a model, or a dataset, for other programs, checks it, and only then moves it to `out`.

    `target`: a run (its last checkpoint; of one with train.stop_after the best, unless `last`; the `average` of its weights if it has
    one), a model from elsewhere, or a dataset. Formats and options are those of `packtrain export --help`; `dataset` gives
    the text to compare with if the run's was moved. Raises ExportError, or as `load` and `open_dataset` do.
    """
    folder = Path(target)
    if is_dataset(folder):
        return export_documents(folder, Path(out), format=format, overwrite=overwrite)
    return export_opened(
        folder,
        Path(out),
        format=format or "hf",
        overwrite=overwrite,
        dataset=None if dataset is None else Path(dataset),
        step=step,
        best=best,
        last=last,
        average=average,
        on_progress=on_progress,
        **options,
    )


def export_documents(folder: Path, out: Path, *, format: str | None, overwrite: bool) -> DatasetExport:
    """`export` of a dataset."""
    from packtrain.data.format.shards import open_dataset
    from packtrain.export.dataset import DATASET_FORMATS, export_dataset

    if format is None:
        raise ConfigError(f"{folder} is a dataset; write --format with one of {', '.join(DATASET_FORMATS)}")
    return export_dataset(open_dataset(folder), out, format=format, overwrite=overwrite)


def export_opened(
    target: Path,
    out: Path,
    *,
    format: str,
    overwrite: bool,
    dataset: Path | None,
    step: int | None,
    best: bool,
    last: bool,
    average: bool | None,
    on_progress: Callable[[int, int], None] | None,
    **options: Unpack[ExportOptions],
) -> Export:
    """`export` of a model."""
    from packtrain.export.run import export_model
    from packtrain.pretrained.open import open_model

    return export_model(
        open_model(target, step=step, which=which_checkpoint(target, step, best, last), average=average),
        out,
        format=format,
        overwrite=overwrite,
        dataset=dataset,
        on_progress=on_progress,
        **options,
    )


def push(folder: str | Path, repo: str, *, public: bool = False) -> str:
    """Uploads an export to the Hugging Face hub as the repository `repo` (owner/name), and gives its address.

    It is private unless `public`. Needs HF_TOKEN or `hf auth login`. Raises ExportError if the hub cannot be reached or refuses.
    """
    from packtrain.export.push import upload

    return upload(Path(folder), repo, public=public)
