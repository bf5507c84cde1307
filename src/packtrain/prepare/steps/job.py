"""Decides what a recipe means: its slices, its tokenizer, and the hashes by which two recipes are known to give equal bytes."""

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import FORMAT_VERSION, canonical_json, id_dtype
from packtrain.data.tokens.fast import check_fast
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import DatasetError, TokenizerError
from packtrain.prepare.copies.signatures import algorithm_version
from packtrain.prepare.sources.documents import SOURCE_KINDS, plan_slices
from packtrain.prepare.sources.hub import tokenizer_folder
from packtrain.prepare.sources.slices import Slicing
from packtrain.prepare.steps.results import Results, name_choice, tokenizer_path
from packtrain.prepare.steps.text_loss import try_tokenizer
from packtrain.prepare.steps.train_tokenizer import iterate_training_texts, train_tokenizer
from packtrain.prepare.text.clean import Cleaner
from packtrain.storage.locks import WORK_FOLDER
from packtrain.storage.store import Store

log = logging.getLogger("packtrain")


# Settings that the first datasets did not know. They are left out where they have their default, so that hashes stay.
_LATER_SETTINGS = {
    "source": ("delimiter", "quoting", "max_document_mb"),
    "split": ("validation_files", "column", "validation_values", "validation_split", "keep_leaks"),
}


@dataclass(frozen=True)
class Job:
    """A recipe, planned: where its results are, its slices, and its tokenizer if it names one."""

    results: Results
    slicing: Slicing
    tokenizer: Tokenizer | None

    @property
    def id_bytes(self) -> int:
        """Bytes of a token id on disk."""
        size = self.tokenizer.vocab_size if self.tokenizer is not None else self.results.recipe.tokenizer.vocab_size
        assert size is not None
        return np.dtype(id_dtype(size)).itemsize


def plan_job(recipe: Recipe, store: Store) -> Job:
    """Plan the slices of a source, and open the tokenizer that the recipe names. Raises TokenizerError if it loses text."""
    # Reports a missing library before a source is read, which may take long.
    Cleaner(recipe.clean)
    _check_apart(recipe, store)
    slicing = plan_slices(recipe, store)
    tokenizer = load_named_tokenizer(recipe)
    if recipe.tokenizer.backend == "fast":
        check_fast(tokenizer)
    decodes = tokenizer.hash if tokenizer is not None and recipe.source.gives_ids else None
    results = Results(recipe, store, tokenizer_hash=decodes)
    job = Job(replace(results, choice=name_choice(results, slicing.slices)), slicing, tokenizer)
    if decodes is not None:
        settle_tokenizer(job)
    if tokenizer is not None:
        try_tokenizer(job.results, slicing.slices, tokenizer)
    return job


def _check_apart(recipe: Recipe, store: Store) -> None:
    """Raise DatasetError if the next run would take the dataset's own files for source files."""
    path = recipe.source.path
    reads_dataset = {".json", ".parquet"}.intersection(SOURCE_KINDS[recipe.source.kind].suffixes)
    if path is None or not reads_dataset or "://" in path + store.where:
        return
    folder = Path(path).expanduser()
    # If the folder cannot be read, reading the source reports it.
    with suppress(PermissionError):
        if not folder.is_dir() or not Path(store.where).resolve().is_relative_to(folder.resolve()):
            return
        raise DatasetError(
            f"--out {store.where} is inside source.path={path}, where its files would be taken for source files; choose a "
            "folder outside of it"
        )


def load_named_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer that a recipe names, if any. Raises TokenizerError if it lacks the BOS or EOS that the recipe needs."""
    wanted = recipe.tokenizer
    if wanted.name is None:
        return None
    tokenizer = load_tokenizer(tokenizer_folder(wanted.name, wanted.revision))
    for key, is_wanted, found in (("bos", wanted.bos, tokenizer.bos_id), ("eos", wanted.eos, tokenizer.eos_id)):
        assumed = tokenizer.assumed.get(f"{key}_token")
        # Taken for both, it would stand twice between documents. Ids that another program made have what they have.
        is_assumed_twice = assumed is not None and tokenizer.bos_id == tokenizer.eos_id
        is_double = key == "bos" and is_assumed_twice and not recipe.source.gives_ids
        if is_wanted and (found is None or is_double):
            raise TokenizerError(
                f"the tokenizer {wanted.name} has no {key.upper()} token, which tokenizer.{key}=true needs; write "
                f"tokenizer.{key}=false, or name its {key}_token in its tokenizer_config.json"
            )
        if is_wanted and assumed is not None:
            log.warning(
                "no file of the tokenizer %s says which token is its %s; taking %s by its name: if it is another, name its "
                "%s_token in its tokenizer_config.json",
                wanted.name,
                key.upper(),
                assumed,
                key,
            )
    return tokenizer


def settle_tokenizer(job: Job) -> Tokenizer:
    """Put the tokenizer into the work folder: the named one, or one trained on what is kept, unless an earlier run did."""
    results, store = job.results, job.results.store
    tokenizer, size = job.tokenizer, results.recipe.tokenizer.vocab_size
    note = f"{WORK_FOLDER}/tokenizer-{results.choice}-{size}.json"
    with store.one_at_a_time("tokenizer"):
        if tokenizer is None and store.exists(note):
            return load_tokenizer(store.folder(tokenizer_path(json.loads(store.read(note)))))
        if tokenizer is None:
            assert size is not None
            tokenizer = train_tokenizer(iterate_training_texts(results, job.slicing.slices), size)
            if tokenizer.vocab_size < size:
                log.warning("the source is so small that its vocabulary has %d ids of %d", tokenizer.vocab_size, size)
        if not store.exists(f"{tokenizer_path(tokenizer.hash)}/tokenizer.json"):
            save_tokenizer(tokenizer, store, f"{tokenizer_path(tokenizer.hash)}/")
        if job.tokenizer is None:
            store.write(note, json.dumps(tokenizer.hash).encode())
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, store: Store, folder: str) -> None:
    """Write a tokenizer's files; `folder` ends in a slash, or is empty."""
    for name, data in tokenizer.files().items():
        store.write(folder + name, data)


def record_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe without the settings that change no byte of the dataset."""
    no_byte = {"prepare": {"workers", "executor", "ray_address", "disk_check"}, "tokenizer": {"backend", "allow_loss"}}
    tree = recipe.model_dump(mode="json", exclude=no_byte)
    for table, names in _LATER_SETTINGS.items():
        section = getattr(recipe, table)
        for name in names:
            if getattr(section, name) == type(section).model_fields[name].default:
                del tree[table][name]
    return tree


def hash_recipe(recipe: Recipe) -> str:
    """SHA-256, hexadecimal, of the recorded recipe."""
    return hashlib.sha256(canonical_json(record_recipe(recipe))).hexdigest()


def hash_inputs(recipe: Recipe, slicing: Slicing, tokenizer: Tokenizer | None) -> str:
    """SHA-256, hexadecimal, of everything that the bytes of a dataset depend on; not of where source and tokenizer are."""
    tree = record_recipe(recipe)
    for key in ("path", "repo", "revision", "function"):
        del tree["source"][key]
    for key in ("name", "revision"):
        del tree["tokenizer"][key]
    tree["content"] = slicing.fingerprint
    tree["tokenizer_hash"] = tokenizer.hash if tokenizer is not None else None
    tree["format"] = FORMAT_VERSION
    if recipe.dedup.near:
        tree["signatures"] = algorithm_version()
    return hashlib.sha256(canonical_json(tree)).hexdigest()
