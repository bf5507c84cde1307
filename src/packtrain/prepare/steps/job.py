"""Decides what a recipe asks for: its slices, its tokenizer, and the hashes by which two recipes give the same bytes."""

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from packtrain.config.recipe import ID_KINDS, Recipe
from packtrain.data.format.manifest import FORMAT_VERSION, canonical_json, id_dtype
from packtrain.data.tokens.fast import check_fast
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import DatasetError, TokenizerError
from packtrain.prepare.copies.signatures import algorithm_version
from packtrain.prepare.sources import documents
from packtrain.prepare.sources.hub import tokenizer_folder
from packtrain.prepare.sources.slices import Slicing
from packtrain.prepare.steps.results import Results, choice_key, tokenizer_name
from packtrain.prepare.steps.train_tokenizer import train_tokenizer, training_texts
from packtrain.prepare.text.clean import Cleaner
from packtrain.storage.locks import WORK_FOLDER
from packtrain.storage.store import Store

log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class Job:
    """What is to be done: where, on which slices, and with which tokenizer if the recipe names one."""

    place: Results
    plan: Slicing
    tokenizer: Tokenizer | None


def begin(recipe: Recipe, store: Store) -> Job:
    """Plan the source and open the tokenizer that the recipe names."""
    # Tells what it lacks before a source is read that may be large.
    Cleaner(recipe.clean)
    _check_apart(recipe, store)
    plan = documents.plan(recipe, store)
    tokenizer = named_tokenizer(recipe)
    if recipe.tokenizer.backend == "fast":
        check_fast(tokenizer)
    decodes = tokenizer.hash if tokenizer is not None and recipe.source.kind in ID_KINDS else None
    place = Results(recipe, store, tokenizer_hash=decodes)
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


def named_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer that a recipe names, if it does. Raises TokenizerError if that has not the tokens it is to put."""
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
    with store.one_at_a_time("tokenizer"):
        if tokenizer is None and store.exists(note):
            return load_tokenizer(store.folder(tokenizer_name(json.loads(store.read(note)))))
        if tokenizer is None:
            assert size is not None
            tokenizer = train_tokenizer(training_texts(place, job.plan.slices), size)
            if tokenizer.vocab_size < size:
                log.warning("the source is so small that its vocabulary has %d ids of %d", tokenizer.vocab_size, size)
        if not store.exists(f"{tokenizer_name(tokenizer.hash)}/tokenizer.json"):
            save_tokenizer(tokenizer, store, f"{tokenizer_name(tokenizer.hash)}/")
        if job.tokenizer is None:
            store.write(note, json.dumps(tokenizer.hash).encode())
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, store: Store, folder: str) -> None:
    """Write its files; `folder` ends in a slash, or is empty."""
    for name, data in tokenizer.files().items():
        store.write(folder + name, data)


def id_bytes(job: Job) -> int:
    """Bytes of an id on disk."""
    size = job.tokenizer.vocab_size if job.tokenizer is not None else job.place.recipe.tokenizer.vocab_size
    assert size is not None
    return np.dtype(id_dtype(size)).itemsize


def recorded_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what changes no byte of the result."""
    no_byte = {"prepare": {"workers", "executor", "ray_address", "disk_check"}, "tokenizer": {"backend"}}
    return recipe.model_dump(mode="json", exclude=no_byte)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256, hexadecimal, of the recorded recipe."""
    return hashlib.sha256(canonical_json(recorded_recipe(recipe))).hexdigest()


def inputs_hash(recipe: Recipe, plan: Slicing, tokenizer: Tokenizer | None) -> str:
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
