"""Decides the order of preparation: plan, scan, deduplicate, tokenize, and the manifest last; what is finished is kept."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packtrain import __version__
from packtrain.config.recipe import Recipe
from packtrain.data import documents, lengths
from packtrain.data.atomic import write_atomically
from packtrain.data.hub import tokenizer_folder
from packtrain.data.ledger import balance
from packtrain.data.pool import Task, Workers
from packtrain.data.selection import Selection, num_workers, select
from packtrain.data.shards import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Manifest,
    ShardInfo,
    SplitName,
    TokenizerInfo,
    canonical_json,
    id_dtype,
    read_manifest,
)
from packtrain.data.signatures import algorithm_version
from packtrain.data.slices import Plan, Slice
from packtrain.data.stages import Workplace, keep_hash, make_folders, read_keep, tokenize_slice
from packtrain.data.tokenizer import Tokenizer, load_tokenizer
from packtrain.data.tokenizer_training import train_tokenizer, training_texts
from packtrain.data.workspace import clear, held, publish, sweep
from packtrain.errors import DatasetError, SourceError, TokenizerError

Progress = Callable[[int, int], None]

log = logging.getLogger("packtrain")

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
    with held(out) as workspace:
        publish(out)
        if (out / MANIFEST).is_file():
            return _already_finished(recipe, out, workspace)
        plan = documents.plan(recipe, workspace)
        tokenizer = _named_tokenizer(recipe)
        place = _workplace(recipe, plan, tokenizer, workspace)
        progress = _Shown(plan.rows, on_progress)
        with Workers(num_workers(recipe)) as workers:
            selection = select(place, plan, workers, progress.scanned)
            tokenizer = _settle_tokenizer(place, plan, tokenizer)
            _tokenize(place, plan, tokenizer, workers, progress.tokenized)
        manifest = _manifest(place, plan, tokenizer, selection)
        sweep(place.folder)
        write_atomically(place.folder / MANIFEST, manifest.to_bytes())
        publish(out)
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
    with held(out) as workspace:
        if (out / "tokenizer.json").exists() or (out / MANIFEST).exists():
            raise TokenizerError(f"{out} already holds a tokenizer or dataset; choose another --out")
        plan = documents.plan(recipe, workspace)
        place = _workplace(recipe, plan, None, workspace)
        with Workers(num_workers(recipe)) as workers:
            select(place, plan, workers, lambda rows: on_progress(rows, plan.rows) if on_progress else None)
        tokenizer = _settle_tokenizer(place, plan, None)
        tokenizer.save(out)
        clear(out)
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
    if recipe.dedup.near:
        tree["signatures"] = algorithm_version()
    return hashlib.sha256(canonical_json(tree)).hexdigest()


def _already_finished(recipe: Recipe, out: Path, workspace: Path) -> Prepared:
    manifest = read_manifest(out)
    try:
        plan = documents.plan(recipe, workspace)
        same = inputs_hash(recipe, plan, _named_tokenizer(recipe)) == manifest.inputs_hash
    except (SourceError, TokenizerError) as error:
        same = recipe_hash(recipe) == manifest.recipe_hash
        log.warning("%s is finished; whether its source changed since is not known, as %s", out, error)
    finally:
        clear(out)
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
    place = Workplace(recipe, folder)
    make_folders(place)
    sweep(folder)
    return place


def _settle_tokenizer(place: Workplace, plan: Plan, tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer in the work folder: copied there, or trained on what is kept, unless it is there already."""
    folder = place.tokenizer_folder
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder)
    if tokenizer is None:
        size = place.recipe.tokenizer.vocab_size
        assert size is not None
        tokenizer = train_tokenizer(training_texts(place, plan.slices), size)
        if tokenizer.vocab_size < size:
            log.warning("the source is so small that its vocabulary has %d ids of %d", tokenizer.vocab_size, size)
    tokenizer.save(folder)
    return tokenizer


def _tokenize(
    place: Workplace,
    plan: Plan,
    tokenizer: Tokenizer,
    workers: Workers,
    on_rows: Callable[[int], None],
) -> None:
    """Stage two on every slice without a record for this choice of documents and this tokenizer."""
    missing = [work for work in plan.slices if not _is_recorded(place, work, tokenizer)]
    done = plan.rows - sum(work.rows for work in missing)
    tasks = [Task(tokenize_slice, (place, work), work.describe()) for work in missing]
    for number, _ in workers.run(tasks):
        done += missing[number].rows
        on_rows(done)


def _is_recorded(place: Workplace, work: Slice, tokenizer: Tokenizer) -> bool:
    path = place.record_path(work)
    if not path.is_file():
        return False
    record = json.loads(path.read_bytes())
    return bool(
        # A record without `longer` is an earlier version's.
        "longer" in record
        and record["keep"] == keep_hash(read_keep(place, work))
        and record["tokenizer"] == tokenizer.hash
    )


def _manifest(place: Workplace, plan: Plan, tokenizer: Tokenizer, selection: Selection) -> Manifest:
    records = [json.loads(place.record_path(work).read_bytes()) for work in plan.slices]
    splits: dict[SplitName, tuple[ShardInfo, ...]] = {
        name: tuple(ShardInfo.model_validate(r["shards"][name]) for r in records if name in r["shards"])
        for name in SPLITS
    }
    merged = lengths.merge(records)
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
        length_histogram=merged.histogram,
        ledger=balance(
            selection.intake,
            selection.kept,
            selection.copies,
            splits,
            recipe.split.validation_fraction,
            merged,
        ),
    )


class _Shown:
    """Progress of both stages as one count of documents."""

    def __init__(self, rows: int, on_progress: Progress | None) -> None:
        self._rows, self._report = rows, on_progress

    def scanned(self, rows: int) -> None:
        self._show(_SCAN_COST * rows)

    def tokenized(self, rows: int) -> None:
        self._show(_SCAN_COST * self._rows + _TOKENIZE_COST * rows)

    def _show(self, cost: int) -> None:
        if self._report is not None:
            self._report(cost // (_SCAN_COST + _TOKENIZE_COST), self._rows)
