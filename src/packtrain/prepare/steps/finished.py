"""Decides what makes a dataset finished: its manifest, its files under their final names, and whose recipe it is."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from packtrain import __version__
from packtrain.config.recipe import Recipe
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
from packtrain.errors import DatasetError, Interrupted, SourceError, TokenizerError
from packtrain.prepare.sources.documents import plan_slices
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.job import Job, hash_inputs, hash_recipe, load_named_tokenizer, record_recipe
from packtrain.prepare.steps.ledger import merge_lengths
from packtrain.prepare.steps.results import TOKENS, tokenizer_path
from packtrain.storage.locks import LOCK, WORK_FOLDER
from packtrain.storage.store import Store

log = logging.getLogger("packtrain")

# Once this file exists, all work is done; it holds the manifest and the final name of each file.
_PUBLICATION = f"{WORK_FOLDER}/publication.json"


# The names that a file has before and after. They are read from a file, and must not lead out of the dataset.
_OLD = re.compile(rf"{re.escape(WORK_FOLDER)}/[\w-]+/[\w-]+(\.[\w-]+)*")
_NEW = re.compile(
    rf"{TOKENIZER_FOLDER}/tokenizer(_config)?\.json|({'|'.join(SPLITS)})/[0-9]{{5,}}\.({'|'.join(map(re.escape, SUFFIXES))})"
)


def build_manifest(
    job: Job, tokenizer: Tokenizer, records: Sequence[dict[str, Any]], ledger: dict[str, Any]
) -> Manifest:
    """The manifest of a dataset, from the records of its tokenized slices and its ledger."""
    recipe = job.results.recipe
    return Manifest(
        format_version=FORMAT_VERSION,
        created_by=f"packtrain {__version__}",
        recipe=record_recipe(recipe),
        recipe_hash=hash_recipe(recipe),
        inputs_hash=hash_inputs(recipe, job.slicing, tokenizer if recipe.tokenizer.name else None),
        source_revision=job.slicing.revision,
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
        splits={name: _list_shards(name, job.slicing.slices, records) for name in SPLITS},
        length_histogram=merge_lengths(records).histogram,
        ledger=ledger,
    )


def list_moves(store: Store, manifest: Manifest, slices: Sequence[Slice], keys: Sequence[str]) -> list[tuple[str, str]]:
    """Every file of the finished dataset: its name in the work folder, and its final name."""
    key_of = {piece.name: key for piece, key in zip(slices, keys, strict=True)}
    shards = ((split, shard.name) for split in SPLITS for shard in manifest.splits[split])
    tokenizer = tokenizer_path(manifest.tokenizer.hash)
    return [
        *((f"{tokenizer}/{name}", f"{TOKENIZER_FOLDER}/{name}") for name in sorted(store.names(tokenizer))),
        *(
            (f"{TOKENS}/{key_of[name]}.{split}.{suffix}", f"{split}/{name}.{suffix}")
            for split, name in shards
            for suffix in SUFFIXES
        ),
    ]


def read_finished(recipe: Recipe, store: Store) -> Manifest:
    """The manifest of the dataset that is there. Raises DatasetError if it is not of this recipe and source."""
    out = store.where
    manifest = parse_manifest(store.read(MANIFEST), store.url(MANIFEST))
    try:
        slicing = plan_slices(recipe, store)
        is_same = hash_inputs(recipe, slicing, load_named_tokenizer(recipe)) == manifest.inputs_hash
    except (SourceError, TokenizerError) as error:
        is_same = hash_recipe(recipe) == manifest.recipe_hash
        log.warning("%s is finished, but whether its source has changed since is unknown: %s", out, error)
    if not is_same:
        raise DatasetError(
            f"{out} holds a finished dataset of another recipe or of other source files; choose another --out, or delete it"
        )
    return manifest


def drop_other_tokens(store: Store, keys: Sequence[str]) -> None:
    """Remove the tokenized slices of other tokenizers and choices, which take as much disk as the wanted ones."""
    wanted = set(keys)
    others = [name for name in store.names(TOKENS) if name.partition(".")[0] not in wanted]
    store.remove([f"{TOKENS}/{name}" for name in sorted(others)])


@contextmanager
def lock_dataset(store: Store, *, shared: bool = False) -> Iterator[Callable[[], None]]:
    """Hold a dataset for this process alone, or `shared` with others; gives a function that raises if the lock was lost.

    Raises DatasetError if the dataset is in use, contains other files or cannot be written. Within the block, turns a full
    disk into DiskFullError and Ctrl-C into Interrupted.
    """
    names = store.names("")
    if names and WORK_FOLDER not in names and MANIFEST not in names:
        raise DatasetError(
            f"--out {store.where} contains other files, which are left alone; choose a folder that does not exist yet"
        )
    with store.writing(), store.lock(shared=shared) as check:
        try:
            yield check
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; finished slices are kept in {store.where}: run the same command to continue"
            ) from None
        finally:
            if not shared:
                store.sweep()


def announce(store: Store, manifest: bytes, moves: Sequence[tuple[str, str]]) -> None:
    """Record that all work is done: the manifest, and which file gets which name."""
    store.write(_PUBLICATION, json.dumps({"manifest": manifest.decode(), "moves": moves}).encode())


def publish(store: Store) -> None:
    """Give the files that were announced their names. After a kill in the middle of this, the next run completes it."""
    if store.exists(_PUBLICATION) and not store.exists(MANIFEST):
        manifest, moves = _read_publication(store)
        store.move(moves)
        store.write(MANIFEST, manifest)
    if store.exists(MANIFEST):
        clear(store)


def _read_publication(store: Store) -> tuple[bytes, list[tuple[str, str]]]:
    """The manifest and the moves that were announced. Raises DatasetError if a name in it is not that of a dataset's file."""
    try:
        publication = json.loads(store.read(_PUBLICATION))
        manifest, moves = publication["manifest"].encode(), [(str(old), str(new)) for old, new in publication["moves"]]
        wrong = [
            name for old, new in moves for name in (old, new) if not (_OLD if name is old else _NEW).fullmatch(name)
        ]
        if wrong:
            raise ValueError(f"it has the name {wrong[0]!r}")
        parse_manifest(manifest, store.url(_PUBLICATION))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{store.url(_PUBLICATION)} is damaged ({error}); delete it and run the same `packtrain prepare` again"
        ) from None
    return manifest, moves


def clear(store: Store) -> None:
    """Remove everything in the work folder but the lock."""
    names = store.names(WORK_FOLDER) - {LOCK.rpartition("/")[2]}
    store.remove([f"{WORK_FOLDER}/{name}" for name in sorted(names)])


def _list_shards(name: SplitName, slices: Sequence[Slice], records: Sequence[dict[str, Any]]) -> tuple[ShardInfo, ...]:
    return tuple(
        ShardInfo.model_validate({**record["shards"][name], "name": piece.name})
        for piece, record in zip(slices, records, strict=True)
        if name in record["shards"]
    )
