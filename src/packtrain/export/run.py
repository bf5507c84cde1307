"""Decides how an export goes: written aside, read back and compared, described, and only then put in its place."""

import difflib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import packtrain
from packtrain.errors import ExportError
from packtrain.export import card, huggingface, verify
from packtrain.export.format import Checks, Format, Subject
from packtrain.export.publish import check_target, seal, staged
from packtrain.generate.conditions import conditions_of
from packtrain.runs.checkpoint import OpenRun
from packtrain.runs.manifest import list_datasets

FORMATS = {
    "hf": Format(huggingface.write, verify.check, card.write),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class Export:
    """A finished export: where it lies, its files' bytes, and what was measured on it."""

    folder: Path
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
    """Exports the model of `run` to the folder `out`, which appears whole and checked, or not at all.

    `dataset`: a prepared dataset of the run's, from whose validation split the comparison takes its text; by default the
    folder that the run remembers, of a mixture that of the weightiest source. `on_progress` gets (stages done, stages).
    Raises ExportError for an unknown format or dtype, for an `out` that is in the way, and where the reloaded model is
    not the run's; TokenizerError where the run's tokenizer is not its own; DiskFullError where there is no room.
    """
    chosen = FORMATS[_known(format, FORMATS, "format")]
    subject = Subject(run, conditions_of(run), DTYPES[_known(dtype, DTYPES, "dtype")])
    done = on_progress or (lambda _done, _total: None)
    # Of a mixture the weightiest: what the comparison needs is text of the kind that was trained on.
    dataset = dataset or Path(list_datasets(run.manifest)[0]["folder"])
    check_target(out, overwrite=overwrite)
    with staged(out, overwrite=overwrite, needed_bytes=_estimated_bytes(subject)) as folder:
        done(0, 3)
        chosen.write(subject, folder)
        done(1, 3)
        checks = chosen.check(subject, folder, dataset)
        done(2, 3)
        if checks.text != "validation split":
            _log.warning(
                "the dataset %s is not at hand as the run saw it; compared on built-in prompts instead", dataset
            )
        chosen.describe(subject, checks, folder)
        seal(folder, _facts(subject, format, checks))
        size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    done(3, 3)
    return Export(out, size_bytes, checks)


def _known(name: str, known: dict[str, Any], what: str) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ExportError(f"there is no export {what} '{name}'; {hint}write --{what} with one of {', '.join(known)}")


def _facts(subject: Subject, format: str, checks: Checks) -> dict[str, Any]:
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
    """Weights as written, and a hundredth plus ten megabytes for everything else."""
    return int(subject.num_parameters * subject.dtype.itemsize * 1.01) + 10_000_000
