"""Decides the order of an export: write it aside, read it back and compare, describe it, and only then publish it."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import packtrain
from packtrain.export import card, huggingface, verify
from packtrain.export.format import Checks, Format, Subject, check_choice
from packtrain.export.publish import check_target, seal, staged
from packtrain.pretrained.conditions import conditions_of
from packtrain.runs.checkpoint import OpenRun
from packtrain.runs.logs import find_gaps
from packtrain.runs.manifest import list_datasets

FORMATS = {"hf": Format(huggingface.write, verify.check, card.write)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class Export:
    """A finished export: its folder, the run's step and the size, and what was measured on it."""

    folder: Path
    step: int
    size_bytes: int
    checks: Checks


def export_run(
    run: OpenRun,
    out: Path,
    *,
    format: str = "hf",
    dtype: str = "float32",
    overwrite: bool = False,
    dataset: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Export:
    """Exports the model of `run` to the folder `out`, which appears complete and checked, or not at all.

    `dataset`: a prepared dataset of the run, whose validation split gives the text to compare on. The default is the
    folder that the run was trained on; for a mixture, that of the heaviest source. `on_progress` gets (stages done, stages).
    Raises ExportError for an unknown format or dtype, for an `out` that may not be replaced, and if the reloaded model is
    not the run's; TokenizerError if the tokenizer is not the one the run was trained with; DiskFullError if the disk is full.
    """
    check_choice("format", format, FORMATS, "run")
    check_choice("dtype", dtype, DTYPES, "run")
    chosen, subject = FORMATS[format], Subject(run, conditions_of(run), DTYPES[dtype])
    done = on_progress or (lambda _done, _total: None)
    # The first source is the heaviest: the comparison needs text like that of training.
    dataset = dataset or Path(list_datasets(run.manifest)[0]["folder"])
    check_target(out, overwrite=overwrite)
    for gap in find_gaps(run.layout, run.layout.checkpoint(run.step), run.step):
        _log.warning("%s %s; the model card may lack something", run.layout.folder / gap.file, gap.reason)
    with staged(out, overwrite=overwrite, needed_bytes=_estimated_bytes(subject)) as folder:
        done(0, 3)
        chosen.write(subject, folder)
        done(1, 3)
        checks = chosen.check(subject, folder, dataset)
        done(2, 3)
        if checks.text != "validation split":
            _log.warning(
                "the dataset %s is missing or has changed since training; compared on built-in prompts instead", dataset
            )
        chosen.describe(subject, checks, folder)
        seal(folder, _describe_export(subject, format, checks))
        size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    done(3, 3)
    return Export(out, run.step, size_bytes, checks)


def _describe_export(subject: Subject, format: str, checks: Checks) -> dict[str, Any]:
    run = subject.run
    return {
        "packtrain": packtrain.__version__,
        "format": format,
        "dtype": subject.dtype_name,
        "run": run.layout.folder.resolve().name,
        "step": run.step,
        "dataset_hash": run.manifest["dataset"]["hash"],
        "checks": asdict(checks),
    }


def _estimated_bytes(subject: Subject) -> int:
    """Size of the weights, plus one percent and ten megabytes for everything else."""
    return int(subject.num_parameters * subject.dtype.itemsize * 1.01) + 10_000_000
