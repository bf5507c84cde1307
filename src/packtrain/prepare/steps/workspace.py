"""Decides which folder may become a dataset, where unfinished work is kept in it, and how a finished dataset is published."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from packtrain.data.format.manifest import MANIFEST
from packtrain.errors import DatasetError, Interrupted
from packtrain.storage.locks import LOCK, WORK_FOLDER
from packtrain.storage.store import Store

# Once this file exists, all work is done; it holds the manifest and the final name of each file.
_PUBLICATION = f"{WORK_FOLDER}/publication.json"


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
        publication = json.loads(store.read(_PUBLICATION))
        store.move([(old, new) for old, new in publication["moves"]])
        store.write(MANIFEST, publication["manifest"].encode())
    if store.exists(MANIFEST):
        clear(store)


def clear(store: Store) -> None:
    """Remove everything in the work folder but the lock."""
    names = store.names(WORK_FOLDER) - {LOCK.rpartition("/")[2]}
    store.remove([f"{WORK_FOLDER}/{name}" for name in sorted(names)])
