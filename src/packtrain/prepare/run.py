"""Decides the order of preparation: plan, scan, choose, tokenize, and the manifest last. Finished work is kept."""

from dataclasses import dataclass
from pathlib import Path

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import MANIFEST, Manifest
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import DatasetError, TokenizerError
from packtrain.prepare.steps import finished, passes
from packtrain.prepare.steps.choose import choose
from packtrain.prepare.steps.disk_budget import DiskBudget
from packtrain.prepare.steps.job import Job, plan_job, save_tokenizer, settle_tokenizer
from packtrain.prepare.steps.ledger import balance, sum_backends
from packtrain.storage.store import open_store


@dataclass(frozen=True)
class Prepared:
    """A finished dataset, whether it already was, and how many slices this run scanned and tokenized."""

    where: str
    manifest: Manifest
    was_finished: bool
    scanned: int = 0
    tokenized: int = 0
    encoded: dict[str, int] | None = None
    """How many documents each library encoded (`fast`, `tokenizers`), and how many both; None if this run did not tokenize."""


def prepare(
    recipe: Recipe, out: str | Path, *, is_begun: bool = False, on_progress: passes.Progress | None = None
) -> Prepared:
    """Turn a recipe's source into a dataset in `out`. The files are the same for any number of workers and after any kill.

    `out` is a folder or an fsspec URL. `on_progress` gets documents done and documents in all. A second run continues from
    what is finished, even if the recipe or source has changed, as far as the inputs are the same; a finished dataset of the
    same recipe and source is left alone. With `is_begun` it is an error if no slice is scanned yet. Raises SourceError for a
    source that cannot be read, TokenizerError, DatasetError if `out` is in use or holds something else, DiskFullError, and
    Interrupted on Ctrl-C.
    """
    store = open_store(out)
    with finished.lock_dataset(store) as check_lock:
        finished.publish(store)
        if store.exists(MANIFEST):
            try:
                return Prepared(store.where, finished.read_finished(recipe, store), was_finished=True)
            finally:
                finished.clear(store)
        store.sweep()
        job = plan_job(recipe, store)
        results, slicing = job.results, job.slicing
        if is_begun:
            _check_begun(job)
        progress = passes.PassProgress(slicing.rows, on_progress)
        budget = DiskBudget(store, recipe, job.id_bytes)
        with passes.open_workers(recipe.prepare, store) as workers:
            scanned = passes.scan_slices(results, slicing, slicing.slices, workers, budget, progress.scanned)
            selection = choose(results, slicing)
            tokenizer = settle_tokenizer(job)
            keys = passes.make_token_keys(results, slicing.slices, tokenizer)
            finished.drop_other_tokens(store, keys)
            tokenized = passes.tokenize_slices(
                results, slicing.slices, keys, tokenizer, workers, budget, progress.tokenized
            )
        records = [passes.read_record(results, key) for key in keys]
        ledger = balance(selection, records, recipe)
        manifest = finished.build_manifest(job, tokenizer, records, ledger)
        check_lock()
        finished.announce(store, manifest.to_bytes(), finished.list_moves(store, manifest, slicing.slices, keys))
        finished.publish(store)
        return Prepared(
            store.where,
            manifest,
            was_finished=False,
            scanned=scanned,
            tokenized=tokenized,
            encoded=sum_backends(records),
        )


def prepare_tokenizer(recipe: Recipe, out: str | Path, *, on_progress: passes.Progress | None = None) -> Tokenizer:
    """Train the tokenizer of a recipe as `prepare` would, and save it in `out`, a folder that `tokenizer.name` accepts.

    Raises TokenizerError if the recipe names a tokenizer instead of a vocabulary size, or if `out` already holds one.
    """
    if recipe.tokenizer.vocab_size is None:
        raise TokenizerError(
            f"this recipe uses the tokenizer {recipe.tokenizer.name}; to train one, write tokenizer.name= and "
            "tokenizer.vocab_size=32000"
        )
    store = open_store(out)
    with finished.lock_dataset(store):
        if store.exists("tokenizer.json") or store.exists(MANIFEST):
            raise TokenizerError(f"{store.where} already holds a tokenizer or dataset; choose another --out")
        store.sweep()
        job = plan_job(recipe, store)
        slicing = job.slicing
        budget = DiskBudget(store, recipe, None)
        with passes.open_workers(recipe.prepare, store) as workers:
            report = (lambda rows: on_progress(rows, slicing.rows)) if on_progress else lambda _: None
            passes.scan_slices(job.results, slicing, slicing.slices, workers, budget, report)
        choose(job.results, slicing)
        tokenizer = settle_tokenizer(job)
        save_tokenizer(tokenizer, store, "")
        finished.clear(store)
        return tokenizer


def _check_begun(job: Job) -> None:
    slices = job.slicing.slices
    if len(passes.find_unscanned(job.results, slices)) == len(slices):
        raise DatasetError(
            f"nothing of this recipe and source is prepared in {job.results.store.where}, so there is nothing to finish; check "
            "--out and the settings, or leave --finish out to prepare all of it"
        )
