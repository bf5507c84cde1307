"""Decides the order of an export: write it aside, read it back and compare, describe it, and only then publish it."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import packtrain
from packtrain.data.format.shards import open_dataset
from packtrain.errors import PacktrainError
from packtrain.export.choose import ExportOptions, choose
from packtrain.export.compare import VALIDATION
from packtrain.export.format import Checks, Choices, Subject, check_choice
from packtrain.export.formats import FORMATS
from packtrain.export.publish import check_target, seal, staged
from packtrain.pretrained.open import OpenModel, of_run
from packtrain.pretrained.trained_on import find_training_datasets
from packtrain.runs.checkpoint import AverageKind, OpenRun
from packtrain.runs.logs import find_gaps
from packtrain.runs.manifest import list_datasets

_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class Export:
    """A finished export: its folder, format, the run's step and the size, and what was measured on it."""

    folder: Path
    format: str
    choices: Choices
    step: int | None
    """None for a model that is not a run's."""
    average: AverageKind | None
    """Of what kind the weights are an average over steps; None: they are those of `step`."""
    size_bytes: int
    checks: Checks


def export_run(run: OpenRun, out: Path, **options: Any) -> Export:
    """`export_model` of an open run, with its options. Raises TokenizerError if the tokenizer is not the run's."""
    return export_model(of_run(run), out, **options)


def export_model(
    opened: OpenModel,
    out: Path,
    *,
    format: str = "hf",
    overwrite: bool = False,
    dataset: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Unpack[ExportOptions],
) -> Export:
    """Exports a model to the folder `out`, which appears complete and checked, or not at all.

    `dataset`: a prepared dataset of the run, whose validation split gives the text to compare on. The default is the
    folder that the run was trained on; for a mixture, that of the heaviest source. `on_progress` gets (stages done, stages).
    `options` are those of the format. Raises ExportError for an unknown format or an option that does not fit it, for what
    the format cannot hold, for an `out` that may not be replaced, and if the reloaded model is another; DiskFullError if the
    disk is full.
    """
    check_choice("format", format, FORMATS, "run")
    chosen, subject = FORMATS[format], Subject(opened, choose(format, options))
    done = on_progress or (lambda _done, _total: None)
    check_target(out, overwrite=overwrite)
    chosen.examine(subject)
    if subject.run is not None:
        # The first source is the heaviest: the comparison needs text like that of training.
        dataset = dataset or Path(list_datasets(subject.run.manifest)[0]["folder"])
        _warn_of_gaps(subject.run)
    with staged(out, overwrite=overwrite, needed_bytes=_estimated_bytes(subject, chosen.dtypes)) as folder:
        done(0, 3)
        chosen.write(subject, folder)
        done(1, 3)
        checks = chosen.check(subject, folder, dataset)
        done(2, 3)
        if dataset is not None and checks.text != VALIDATION:
            _log.warning(
                "the dataset %s is missing, has changed since training or is not the model's; compared on built-in prompts instead",
                dataset,
            )
        for remark in checks.remarks:
            _log.warning("%s", remark)
        chosen.describe(subject, checks, folder)
        seal(folder, _describe_export(subject, format, checks, dataset))
        size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    done(3, 3)
    return Export(out, format, subject.choices, opened.step, opened.average, size_bytes, checks)


def _warn_of_gaps(run: OpenRun) -> None:
    for gap in find_gaps(run.layout, run.layout.checkpoint(run.step), run.step):
        _log.warning("%s %s; the model card may lack something", run.layout.folder / gap.file, gap.reason)


def _describe_export(subject: Subject, format: str, checks: Checks, dataset: Path | None) -> dict[str, Any]:
    opened, run = subject.opened, subject.run
    made_by: dict[str, Any] = {}
    if run is not None:
        made_by = {"run": opened.name, "step": run.step, "average": run.average}
        made_by["dataset_hash"] = run.manifest["dataset"]["hash"]
    return {
        "packtrain": packtrain.__version__,
        "format": format,
        "dtype": subject.choices.dtype,
        **(made_by or {"model": opened.name}),
        "datasets": _list_datasets(subject, dataset),
        "checks": asdict(checks),
    }


def _list_datasets(subject: Subject, dataset: Path | None) -> list[dict[str, Any]]:
    """What the model was trained on, so that `packtrain evaluate` finds its validation split; `dataset` is where one is now."""
    now: dict[str, str] = {}
    with contextlib.suppress(PacktrainError, OSError):
        if dataset is not None:
            now = {open_dataset(dataset).manifest.hash: str(dataset.resolve())}
    found = [
        part.model_copy(update={"folder": now.get(part.hash, part.folder)})
        for part in find_training_datasets(subject.opened)
    ]
    return [part.model_dump(exclude_none=True) for part in found]


def _estimated_bytes(subject: Subject, dtypes: Any) -> int:
    """Size of the weights, plus one percent and ten megabytes for everything else."""
    return int(subject.num_parameters * dtypes[subject.choices.dtype] * 1.01) + 10_000_000
