"""Decides the order of preparation: plan, scan, deduplicate, tokenize, and the manifest last; what is finished is kept."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packtrain import __version__
from packtrain.config.recipe import ID_KINDS, Recipe
from packtrain.data.format.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    SUFFIXES,
    TOKENIZER_FOLDER,
    Manifest,
    ShardInfo,
    SplitName,
    TokenizerInfo,
    id_dtype,
    parse_manifest,
)
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import DatasetError, SourceError, TokenizerError
from packtrain.prepare.sources import documents
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps import lengths
from packtrain.prepare.steps.choose import Selection, choose
from packtrain.prepare.steps.disk_budget import DiskBudget
from packtrain.prepare.steps.job import (
    Job,
    begin,
    id_bytes,
    inputs_hash,
    named_tokenizer,
    recipe_hash,
    recorded_recipe,
    save_tokenizer,
    settle_tokenizer,
)
from packtrain.prepare.steps.ledger import balance
from packtrain.prepare.steps.passes import _record, missing_scans, scan_slices, tokenize, tokens_keys
from packtrain.prepare.steps.results import TOKENS, tokenizer_name
from packtrain.prepare.steps.workspace import announce, clear, lock_dataset, publish
from packtrain.prepare.workers.executors import open_workers
from packtrain.storage.store import Store, open_store

Progress = Callable[[int, int], None]

log = logging.getLogger("packtrain")

# What a slice costs in each stage, for a progress bar that moves evenly.
_SCAN_COST, _TOKENIZE_COST = 1, 9


@dataclass(frozen=True)
class Prepared:
    """A finished dataset, whether it was so before, and how many slices were scanned and tokenized for it just now."""

    where: str
    manifest: Manifest
    was_finished: bool
    scanned: int = 0
    tokenized: int = 0


def prepare(
    recipe: Recipe, out: str | Path, *, is_begun: bool = False, on_progress: Progress | None = None
) -> Prepared:
    """Turn a recipe's source into a dataset in `out`. The files are the same for any number of workers and after any kill.

    `out` is a folder or an fsspec URL. `on_progress` gets documents done and documents in all. Run again, it takes up what
    was finished, if for another recipe or source then the part that is the same; a finished dataset of the same recipe and
    source is left alone. With `is_begun` it is an error if no slice was scanned before. Raises SourceError for a source that
    cannot be read, TokenizerError, DatasetError if `out` is in use or holds something else, DiskFullError, and Interrupted
    on Ctrl-C.
    """
    store = open_store(out)
    with lock_dataset(store) as check:
        publish(store)
        if store.exists(MANIFEST):
            try:
                return already_finished(recipe, store)
            finally:
                clear(store)
        store.sweep()
        job = begin(recipe, store)
        plan = job.plan
        if is_begun and len(missing_scans(job.place, plan.slices)) == len(plan.slices):
            raise DatasetError(
                f"nothing of this recipe and source was prepared in {store.where}, so there is nothing to finish; look at --out "
                "and the settings, or leave --finish out to prepare all of it"
            )
        progress = Shown(plan.rows, on_progress)
        room = DiskBudget(store, recipe, id_bytes(job))
        with open_workers(recipe.prepare, store) as workers:
            scanned = scan_slices(job.place, plan, plan.slices, workers, room, progress.scanned)
            selection = choose(job.place, plan)
            tokenizer = settle_tokenizer(job)
            keys = tokens_keys(job.place, plan.slices, tokenizer)
            _forget_others(store, keys)
            tokenized = tokenize(job.place, plan.slices, keys, tokenizer, workers, room, progress.tokenized)
        manifest = _manifest(job, keys, tokenizer, selection)
        check()
        announce(store, manifest.to_bytes(), _moves(store, manifest, plan.slices, keys))
        publish(store)
        return Prepared(store.where, manifest, was_finished=False, scanned=scanned, tokenized=tokenized)


def prepare_tokenizer(recipe: Recipe, out: str | Path, *, on_progress: Progress | None = None) -> Tokenizer:
    """Train the tokenizer of a recipe, as `prepare` would, and keep it in `out`, a folder that `tokenizer.name` accepts.

    Raises TokenizerError if the recipe names a tokenizer in place of a vocabulary size, or if `out` holds one.
    """
    if recipe.tokenizer.vocab_size is None:
        raise TokenizerError(
            f"this recipe uses the tokenizer {recipe.tokenizer.name}; to train one, write tokenizer.name= and "
            "tokenizer.vocab_size=32000"
        )
    store = open_store(out)
    with lock_dataset(store):
        if store.exists("tokenizer.json") or store.exists(MANIFEST):
            raise TokenizerError(f"{store.where} already holds a tokenizer or dataset; choose another --out")
        store.sweep()
        job = begin(recipe, store)
        plan = job.plan
        with open_workers(recipe.prepare, store) as workers:
            scan_slices(
                job.place,
                plan,
                plan.slices,
                workers,
                DiskBudget(store, recipe, None),
                lambda rows: on_progress(rows, plan.rows) if on_progress else None,
            )
        choose(job.place, plan)
        tokenizer = settle_tokenizer(job)
        save_tokenizer(tokenizer, store, "")
        clear(store)
        return tokenizer


def already_finished(recipe: Recipe, store: Store) -> Prepared:
    """The dataset that is there. Raises DatasetError if it is not of this recipe and source."""
    out = store.where
    manifest = parse_manifest(store.read(MANIFEST), store.url(MANIFEST))
    try:
        plan = documents.plan(recipe, store)
        same = inputs_hash(recipe, plan, named_tokenizer(recipe)) == manifest.inputs_hash
    except (SourceError, TokenizerError) as error:
        same = recipe_hash(recipe) == manifest.recipe_hash
        log.warning("%s is finished; whether its source changed since is not known, as %s", out, error)
    if not same:
        raise DatasetError(
            f"{out} holds a finished dataset of another recipe or of other source files; choose another --out, or delete it"
        )
    return Prepared(store.where, manifest, was_finished=True)


def _forget_others(store: Store, keys: Sequence[str]) -> None:
    """Results for other tokenizers or choices take as much room as those that are wanted now."""
    wanted = set(keys)
    others = [name for name in store.names(TOKENS) if name.partition(".")[0] not in wanted]
    store.remove([f"{TOKENS}/{name}" for name in sorted(others)])


def _moves(store: Store, manifest: Manifest, slices: Sequence[Slice], keys: Sequence[str]) -> list[tuple[str, str]]:
    """Every file of the finished dataset: its name in the work folder, and the one it gets."""
    key_of = {work.name: key for work, key in zip(slices, keys, strict=True)}
    shards = ((split, shard.name) for split in SPLITS for shard in manifest.splits[split])
    tokenizer = tokenizer_name(manifest.tokenizer.hash)
    return [
        *((f"{tokenizer}/{name}", f"{TOKENIZER_FOLDER}/{name}") for name in sorted(store.names(tokenizer))),
        *(
            (f"{TOKENS}/{key_of[name]}.{split}.{suffix}", f"{split}/{name}.{suffix}")
            for split, name in shards
            for suffix in SUFFIXES
        ),
    ]


def _manifest(job: Job, keys: Sequence[str], tokenizer: Tokenizer, selection: Selection) -> Manifest:
    place, plan = job.place, job.plan
    records = [_record(place, key) for key in keys]
    splits: dict[SplitName, tuple[ShardInfo, ...]] = {
        name: tuple(
            ShardInfo.model_validate({**record["shards"][name], "name": work.name})
            for work, record in zip(plan.slices, records, strict=True)
            if name in record["shards"]
        )
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
            imported=recipe.source.kind if recipe.source.kind in ID_KINDS else None,
        ),
    )


class Shown:
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
