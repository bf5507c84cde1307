"""Decides the order of preparation: plan, scan, deduplicate, tokenize, and the manifest last; what is finished is kept."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from packtrain import __version__
from packtrain.config.recipe import ID_KINDS, Recipe
from packtrain.data import documents, lengths
from packtrain.data.clean import Cleaner
from packtrain.data.executors import open_workers
from packtrain.data.hub import tokenizer_folder
from packtrain.data.ledger import balance
from packtrain.data.locks import WORK_FOLDER, one_at_a_time
from packtrain.data.pool import Task, Workers
from packtrain.data.room import Room
from packtrain.data.selection import Selection, choose, missing_scans, scan_slices
from packtrain.data.shards import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    SUFFIXES,
    TOKENIZER_FOLDER,
    Manifest,
    ShardInfo,
    SplitName,
    TokenizerInfo,
    canonical_json,
    id_dtype,
    parse_manifest,
)
from packtrain.data.signatures import algorithm_version
from packtrain.data.slices import Plan, Slice
from packtrain.data.stages import TOKENS, Workplace, choice_key, read_keep, tokenize_slice, tokenizer_name
from packtrain.data.store import Store, open_store
from packtrain.data.tokenizer import Tokenizer, load_tokenizer
from packtrain.data.tokenizer_training import train_tokenizer, training_texts
from packtrain.data.workspace import announce, clear, held, publish, sweep
from packtrain.errors import DatasetError, SourceError, TokenizerError

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


@dataclass(frozen=True)
class Job:
    """What is to be done: where, on which slices, and with which tokenizer if the recipe names one."""

    place: Workplace
    plan: Plan
    tokenizer: Tokenizer | None


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
    with held(store) as check:
        publish(store)
        if store.exists(MANIFEST):
            try:
                return already_finished(recipe, store)
            finally:
                clear(store)
        sweep(store)
        job = begin(recipe, store)
        plan = job.plan
        if is_begun and len(missing_scans(job.place, plan.slices)) == len(plan.slices):
            raise DatasetError(
                f"nothing of this recipe and source was prepared in {store.where}, so there is nothing to finish; look at --out "
                "and the settings, or leave --finish out to prepare all of it"
            )
        progress = Shown(plan.rows, on_progress)
        room = Room(store, recipe, id_bytes(job))
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
    with held(store):
        if store.exists("tokenizer.json") or store.exists(MANIFEST):
            raise TokenizerError(f"{store.where} already holds a tokenizer or dataset; choose another --out")
        sweep(store)
        job = begin(recipe, store)
        plan = job.plan
        with open_workers(recipe.prepare, store) as workers:
            scan_slices(
                job.place,
                plan,
                plan.slices,
                workers,
                Room(store, recipe, None),
                lambda rows: on_progress(rows, plan.rows) if on_progress else None,
            )
        choose(job.place, plan)
        tokenizer = settle_tokenizer(job)
        _save(tokenizer, store, "")
        clear(store)
        return tokenizer


def recorded_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what changes no byte of the result."""
    return recipe.model_dump(mode="json", exclude={"prepare": {"workers", "executor", "ray_address", "disk_check"}})


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


def begin(recipe: Recipe, store: Store) -> Job:
    """Plan the source and open the tokenizer that the recipe names."""
    # Tells what it lacks before a source is read that may be large.
    Cleaner(recipe.clean)
    _check_apart(recipe, store)
    plan = documents.plan(recipe, store)
    tokenizer = _named_tokenizer(recipe)
    decodes = tokenizer.hash if tokenizer is not None and recipe.source.kind in ID_KINDS else None
    place = Workplace(recipe, store, tokenizer_hash=decodes)
    job = Job(replace(place, choice=choice_key(place, plan.slices)), plan, tokenizer)
    if decodes is not None:
        settle_tokenizer(job)
    return job


def _check_apart(recipe: Recipe, store: Store) -> None:
    """Raise DatasetError if the next run would take the dataset's own files for source files."""
    path = recipe.source.path
    if path is None or recipe.source.kind not in ("jsonl", "parquet", "hf") or "://" in path + store.where:
        return
    folder = Path(path).expanduser()
    # A folder that cannot be looked into is told of where it is read.
    with suppress(PermissionError):
        if not folder.is_dir() or not Path(store.where).resolve().is_relative_to(folder.resolve()):
            return
        raise DatasetError(
            f"--out {store.where} lies in source.path={path}, where its files would be taken for source files; choose a folder "
            "outside of it"
        )


def already_finished(recipe: Recipe, store: Store) -> Prepared:
    """The dataset that is there. Raises DatasetError if it is not of this recipe and source."""
    out = store.where
    manifest = parse_manifest(store.read(MANIFEST), store.url(MANIFEST))
    try:
        plan = documents.plan(recipe, store)
        same = inputs_hash(recipe, plan, _named_tokenizer(recipe)) == manifest.inputs_hash
    except (SourceError, TokenizerError) as error:
        same = recipe_hash(recipe) == manifest.recipe_hash
        log.warning("%s is finished; whether its source changed since is not known, as %s", out, error)
    if not same:
        raise DatasetError(
            f"{out} holds a finished dataset of another recipe or of other source files; choose another --out, or delete it"
        )
    return Prepared(store.where, manifest, was_finished=True)


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


def settle_tokenizer(job: Job) -> Tokenizer:
    """The tokenizer, put into the work folder: the named one, or one trained on what is kept, unless it was before."""
    place, store = job.place, job.place.store
    tokenizer, size = job.tokenizer, place.recipe.tokenizer.vocab_size
    note = f"{WORK_FOLDER}/tokenizer-{place.choice}-{size}.json"
    with one_at_a_time(store, "tokenizer"):
        if tokenizer is None and store.exists(note):
            return load_tokenizer(store.folder(tokenizer_name(json.loads(store.read(note)))))
        if tokenizer is None:
            assert size is not None
            tokenizer = train_tokenizer(training_texts(place, job.plan.slices), size)
            if tokenizer.vocab_size < size:
                log.warning("the source is so small that its vocabulary has %d ids of %d", tokenizer.vocab_size, size)
        if not store.exists(f"{tokenizer_name(tokenizer.hash)}/tokenizer.json"):
            _save(tokenizer, store, f"{tokenizer_name(tokenizer.hash)}/")
        if job.tokenizer is None:
            store.write(note, json.dumps(tokenizer.hash).encode())
    return tokenizer


def _save(tokenizer: Tokenizer, store: Store, folder: str) -> None:
    for name, data in tokenizer.files().items():
        store.write(folder + name, data)


def tokens_keys(place: Workplace, slices: Sequence[Slice], tokenizer: Tokenizer) -> list[str]:
    """Under which names the results of stage two lie, slice by slice."""
    return [place.tokens_key(work, read_keep(place, work), tokenizer.hash) for work in slices]


def tokenize(
    place: Workplace,
    slices: Sequence[Slice],
    keys: Sequence[str],
    tokenizer: Tokenizer,
    workers: Workers,
    room: Room,
    on_rows: Callable[[int], None],
) -> int:
    """Stage two on each of these slices that has no record under its key; how many there were.

    Raises DiskFullError as soon as `room` finds that the rest will not fit.
    """
    there = place.store.names(TOKENS)
    missing = [work for work, key in zip(slices, keys, strict=True) if f"{key}.json" not in there]
    key_of = dict(zip(slices, keys, strict=True))
    for work in slices:
        if f"{key_of[work]}.json" in there:
            room.measured(_record(place, key_of[work]))
    room.to_tokenize(place, missing)
    done = sum(work.rows for work in slices) - sum(work.rows for work in missing)
    tasks = [Task(tokenize_slice, (place, work, tokenizer.hash), work.describe()) for work in missing]
    for number, _ in workers.run(tasks):
        done += missing[number].rows
        room.tokenized(_record(place, key_of[missing[number]]))
        on_rows(done)
    return len(missing)


def _record(place: Workplace, key: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(place.store.read(f"{TOKENS}/{key}.json"))
    return record


def id_bytes(job: Job) -> int:
    """Bytes of an id on disk."""
    size = job.tokenizer.vocab_size if job.tokenizer is not None else job.place.recipe.tokenizer.vocab_size
    assert size is not None
    return np.dtype(id_dtype(size)).itemsize


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
