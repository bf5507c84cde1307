"""Decides the order of preparation: plan, scan, deduplicate, tokenize, and the manifest last; what is finished is kept."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packtrain import __version__
from packtrain.config.recipe import Recipe
from packtrain.data import documents, pool
from packtrain.data.atomic import disk_errors, flush_folder, write_atomically
from packtrain.data.dedup import Copies, find_copies
from packtrain.data.hub import tokenizer_folder
from packtrain.data.ledger import Intake, Kept, balance, merge_histograms
from packtrain.data.shards import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    TOKENIZER_FOLDER,
    Manifest,
    ShardInfo,
    SplitName,
    TokenizerInfo,
    canonical_json,
    id_dtype,
    read_manifest,
)
from packtrain.data.slices import Plan, Slice
from packtrain.data.stages import UNREADABLE, Workplace, keep_hash, read_scan, scan_slice, tokenize_slice
from packtrain.data.tokenizer import Tokenizer, load_tokenizer
from packtrain.data.tokenizer_training import train_tokenizer, training_texts
from packtrain.errors import DatasetError, Interrupted, SourceError, TokenizerError

Progress = Callable[[int, int], None]

log = logging.getLogger("packtrain")

WORK_FOLDER = ".work"
# What a slice costs in each stage, for a progress bar that moves evenly.
_SCAN_COST, _TOKENIZE_COST = 1, 9


@dataclass(frozen=True)
class Prepared:
    """A finished dataset, and whether it was so before."""

    folder: Path
    manifest: Manifest
    was_finished: bool


def prepare(recipe: Recipe, out: Path, *, on_progress: Progress | None = None) -> Prepared:
    """Turn a recipe's source into a dataset in `out`. The files are the same for any number of workers and after any kill.

    `on_progress` gets documents done and documents in all. Run again, it takes up what was finished; a finished dataset of
    the same recipe and source is left alone. Raises SourceError for a source that cannot be read, TokenizerError,
    DatasetError if `out` is in use or holds something else, DiskFullError, and Interrupted on Ctrl-C.
    """
    out = Path(out)
    with _in_folder(out) as workspace:
        _finish_publishing(out)
        if (out / MANIFEST).is_file():
            return _already_finished(recipe, out, workspace)
        plan = documents.plan(recipe, workspace)
        tokenizer = _named_tokenizer(recipe)
        place = _workplace(recipe, plan, tokenizer, workspace)
        intake, kept, copies, keeps = _scan(place, plan, on_progress)
        _check_sides(kept, recipe)
        tokenizer = _settle_tokenizer(place, plan, tokenizer, keeps)
        _tokenize(place, plan, tokenizer, keeps, on_progress)
        manifest = _manifest(place, plan, tokenizer, intake, kept, copies)
        write_atomically(place.folder / MANIFEST, manifest.to_bytes())
        _finish_publishing(out)
        return Prepared(out, manifest, was_finished=False)


def prepare_tokenizer(recipe: Recipe, out: Path, *, on_progress: Progress | None = None) -> Tokenizer:
    """Train the tokenizer of a recipe, as `prepare` would, and keep it in `out`, a folder that `tokenizer.name` accepts.

    Raises TokenizerError if the recipe names a tokenizer in place of a vocabulary size, or if `out` holds one.
    """
    out = Path(out)
    if recipe.tokenizer.vocab_size is None:
        raise TokenizerError(
            f"this recipe uses the tokenizer {recipe.tokenizer.name}; to train one, write tokenizer.name= and "
            "tokenizer.vocab_size=32000"
        )
    with _in_folder(out) as workspace:
        if (out / "tokenizer.json").exists() or (out / MANIFEST).exists():
            raise TokenizerError(f"{out} already holds a tokenizer or dataset; choose another --out")
        plan = documents.plan(recipe, workspace)
        place = _workplace(recipe, plan, None, workspace)
        _, _, _, keeps = _scan(place, plan, on_progress)
        tokenizer = _settle_tokenizer(place, plan, None, keeps)
        tokenizer.save(out)
        shutil.rmtree(workspace)
        return tokenizer


def recorded_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what changes no byte of the result."""
    return recipe.model_dump(mode="json", exclude={"prepare": {"workers", "executor"}})


def inputs_hash(recipe: Recipe, plan: Plan, tokenizer: Tokenizer | None) -> str:
    """SHA-256, hexadecimal, of everything that a byte of the result depends on: not of where source and tokenizer lie."""
    tree = recorded_recipe(recipe)
    for key in ("path", "repo", "revision", "function"):
        del tree["source"][key]
    for key in ("name", "revision"):
        del tree["tokenizer"][key]
    tree["content"] = plan.fingerprint
    tree["tokenizer_hash"] = tokenizer.hash if tokenizer is not None else None
    tree["format"] = FORMAT_VERSION
    return hashlib.sha256(canonical_json(tree)).hexdigest()


@contextmanager
def _in_folder(out: Path) -> Iterator[Path]:
    """Hold `out` for this process alone, and turn a full disk or Ctrl-C into their errors; gives the folder for work."""
    if out.exists() and not out.is_dir():
        raise DatasetError(f"--out {out} is a file; choose a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()) and not (out / WORK_FOLDER).is_dir() and not (out / MANIFEST).is_file():
        raise DatasetError(f"--out {out} holds other files, which are left alone; choose a folder that does not exist yet")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DatasetError(f"{out} is being prepared by another process; wait for it, or choose another --out") from None
            workspace = out / WORK_FOLDER
            workspace.mkdir(exist_ok=True)
            yield workspace
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; finished slices are kept in {out}: the same command goes on from there") from None
        finally:
            # An empty folder is nothing to keep: neither the one for work, nor one made for a source that could not be read.
            with suppress(OSError):
                (out / WORK_FOLDER).rmdir()
                out.rmdir()
            os.close(descriptor)


def _already_finished(recipe: Recipe, out: Path, workspace: Path) -> Prepared:
    manifest = read_manifest(out)
    try:
        plan = documents.plan(recipe, workspace)
        same = inputs_hash(recipe, plan, _named_tokenizer(recipe)) == manifest.inputs_hash
    except (SourceError, TokenizerError) as error:
        same = recipe_hash(recipe) == manifest.recipe_hash
        log.warning("%s is finished; whether its source changed since is not known, as %s", out, error)
    finally:
        shutil.rmtree(workspace)
    if not same:
        raise DatasetError(
            f"{out} holds a finished dataset of another recipe or of other source files; choose another --out, or delete it"
        )
    return Prepared(out, manifest, was_finished=True)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256, hexadecimal, of the recorded recipe."""
    return hashlib.sha256(canonical_json(recorded_recipe(recipe))).hexdigest()


def _named_tokenizer(recipe: Recipe) -> Tokenizer | None:
    wanted = recipe.tokenizer
    if wanted.name is None:
        return None
    tokenizer = load_tokenizer(tokenizer_folder(wanted.name, wanted.revision))
    for key, is_wanted, found in (("bos", wanted.bos, tokenizer.bos_id), ("eos", wanted.eos, tokenizer.eos_id)):
        if is_wanted and found is None:
            raise TokenizerError(
                f"the tokenizer {wanted.name} has no {key.upper()} token, which tokenizer.{key}=true asks for; write "
                f"tokenizer.{key}=false, or name its {key}_token in its tokenizer_config.json"
            )
    return tokenizer


def _workplace(recipe: Recipe, plan: Plan, tokenizer: Tokenizer | None, workspace: Path) -> Workplace:
    folder = workspace / inputs_hash(recipe, plan, tokenizer)[:32]
    for name in ("scan", "slices", *SPLITS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Workplace(recipe, folder)


def _workers(recipe: Recipe) -> int:
    if recipe.prepare.workers is not None:
        return recipe.prepare.workers
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _scan(
    place: Workplace, plan: Plan, on_progress: Progress | None
) -> tuple[Intake, Kept, Copies, list[npt.NDArray[np.bool_]]]:
    """Stage one on every slice, then what is kept of each: all that is clean, and the first of every group of copies."""
    missing = [s for s in plan.slices if not place.scan_path(s).is_file()]
    tasks = [pool.Task(scan_slice, (place, s), s.describe()) for s in missing]
    done = plan.rows - sum(s.rows for s in missing)
    unreadable = 0
    for number, _ in pool.run(tasks, _workers(place.recipe)):
        work = missing[number]
        done += work.rows
        unreadable += _num_unreadable(read_scan(place, work))
        if unreadable > plan.rows * place.recipe.source.max_bad_fraction:
            _refuse_unreadable(place, plan.slices, plan.rows)
        if on_progress is not None:
            on_progress(done * _SCAN_COST // (_SCAN_COST + _TOKENIZE_COST), plan.rows)
    intake, kept = Intake(), Kept()
    clean_counts, hashes = [], []
    for work in plan.slices:
        scan = read_scan(place, work)
        intake.add(scan, json.loads(place.samples_path(work).read_bytes()))
        hashes.append(scan["content"][scan["reason"] == 0])
        clean_counts.append(len(hashes[-1]))
    if sum(intake.dropped[r] for r in UNREADABLE) > intake.documents * place.recipe.source.max_bad_fraction:
        _refuse_unreadable(place, plan.slices, intake.documents)
    every = np.concatenate(hashes)
    del hashes
    copies = find_copies(every)
    if not place.recipe.dedup.exact:
        copies = Copies(np.ones(len(every), dtype=np.bool_), copies.group_sizes)
    keeps = []
    for work, first in zip(plan.slices, np.split(copies.first, np.cumsum(clean_counts)[:-1]), strict=True):
        scan = read_scan(place, work)
        keep = scan["reason"] == 0
        keep[keep] = first
        kept.add(scan, keep)
        keeps.append(keep)
    return intake, kept, copies, keeps


def _num_unreadable(scan: npt.NDArray[Any]) -> int:
    return int(((scan["reason"] > 0) & (scan["reason"] <= len(UNREADABLE))).sum())


def _refuse_unreadable(place: Workplace, slices: Sequence[Slice], rows: int) -> None:
    intake = Intake()
    for work in slices:
        if place.scan_path(work).is_file():
            intake.add(read_scan(place, work), json.loads(place.samples_path(work).read_bytes()))
    bad = {reason: intake.dropped[reason] for reason in UNREADABLE if intake.dropped[reason]}
    examples = "; ".join(intake.samples[reason][0] for reason in bad)
    counted = ", ".join(f"{count} {reason}" for reason, count in bad.items())
    allowed = place.recipe.source.max_bad_fraction
    raise SourceError(
        f"{sum(bad.values())} of {rows} rows cannot be read ({counted}), more than source.max_bad_fraction={allowed} allows; "
        f"for example {examples}: mend the source, set source.text_column, or raise source.max_bad_fraction"
    )


def _check_sides(kept: Kept, recipe: Recipe) -> None:
    total = sum(kept.documents.values())
    if total == 0:
        raise SourceError("no document is left after cleaning; look at the source, or relax clean.min_chars and clean.max_chars")
    fraction = recipe.split.validation_fraction
    empty: list[SplitName] = [name for name in SPLITS if kept.documents[name] == 0 and (name == "train" or fraction > 0)]
    if empty:
        raise SourceError(
            f"the {empty[0]} side of the split is empty, as all {total} documents fell to the other; give more documents, or "
            "write split.validation_fraction=0 to hold none out, or another split.salt"
        )


def _settle_tokenizer(
    place: Workplace, plan: Plan, tokenizer: Tokenizer | None, keeps: Sequence[npt.NDArray[np.bool_]]
) -> Tokenizer:
    """The tokenizer in the work folder: copied there, or trained on what is kept, unless it is there already."""
    folder = place.tokenizer_folder
    if not (folder / "tokenizer.json").is_file():
        if tokenizer is None:
            size = place.recipe.tokenizer.vocab_size
            assert size is not None
            tokenizer = train_tokenizer(training_texts(place, plan.slices, keeps), size)
            if tokenizer.vocab_size < size:
                log.warning("the source is so small that its vocabulary has %d ids of %d", tokenizer.vocab_size, size)
        tokenizer.save(folder)
    return load_tokenizer(folder)


def _tokenize(
    place: Workplace,
    plan: Plan,
    tokenizer: Tokenizer,
    keeps: Sequence[npt.NDArray[np.bool_]],
    on_progress: Progress | None,
) -> None:
    """Stage two on every slice without a record for this choice of documents and this tokenizer."""
    missing = [
        (work, keep)
        for work, keep in zip(plan.slices, keeps, strict=True)
        if not _is_recorded(place, work, keep, tokenizer)
    ]
    done = plan.rows - sum(work.rows for work, _ in missing)
    tasks = [pool.Task(tokenize_slice, (place, work, keep), work.describe()) for work, keep in missing]
    for number, _ in pool.run(tasks, _workers(place.recipe)):
        done += missing[number][0].rows
        if on_progress is not None:
            weighted = _SCAN_COST * plan.rows + _TOKENIZE_COST * done
            on_progress(weighted // (_SCAN_COST + _TOKENIZE_COST), plan.rows)


def _is_recorded(place: Workplace, work: Slice, keep: npt.NDArray[np.bool_], tokenizer: Tokenizer) -> bool:
    path = place.record_path(work)
    if not path.is_file():
        return False
    record = json.loads(path.read_bytes())
    return bool(record["keep"] == keep_hash(keep) and record["tokenizer"] == tokenizer.hash)


def _manifest(place: Workplace, plan: Plan, tokenizer: Tokenizer, intake: Intake, kept: Kept, copies: Copies) -> Manifest:
    records = [json.loads(place.record_path(work).read_bytes()) for work in plan.slices]
    splits: dict[SplitName, tuple[ShardInfo, ...]] = {
        name: tuple(ShardInfo.model_validate(r["shards"][name]) for r in records if name in r["shards"]) for name in SPLITS
    }
    histogram = merge_histograms(record["lengths"] for record in records)
    recipe = place.recipe
    return Manifest(
        format_version=FORMAT_VERSION,
        created_by=f"packtrain {__version__}",
        recipe=recorded_recipe(recipe),
        recipe_hash=recipe_hash(recipe),
        inputs_hash=inputs_hash(recipe, plan, tokenizer if recipe.tokenizer.name else None),
        source_revision=plan.revision,
        tokenizer=TokenizerInfo(
            hash=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            adds_bos=recipe.tokenizer.bos,
            adds_eos=recipe.tokenizer.eos,
            kind=tokenizer.kind,
        ),
        dtype=id_dtype(tokenizer.vocab_size),
        splits=dict(splits),
        length_histogram=histogram,
        ledger=balance(intake, kept, copies, splits, recipe.split.validation_fraction, sum(histogram.values())),
    )


def _finish_publishing(out: Path) -> None:
    """Give a complete dataset in the work folder its place; a kill in the midst of this is taken up by the next run."""
    ready = sorted((out / WORK_FOLDER).glob(f"*/{MANIFEST}"))
    if ready and not (out / MANIFEST).is_file():
        folder = ready[0].parent
        for name in (TOKENIZER_FOLDER, *SPLITS):
            if (folder / name).is_dir():
                (folder / name).rename(out / name)
        flush_folder(out)
        (folder / MANIFEST).rename(out / MANIFEST)
        flush_folder(out)
    if (out / MANIFEST).is_file():
        shutil.rmtree(out / WORK_FOLDER)
        (out / WORK_FOLDER).mkdir()
