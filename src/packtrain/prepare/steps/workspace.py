"""Decides what may become a dataset's folder, where unfinished work lies in it, and how a finished dataset gets its place."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from packtrain.data.format.manifest import MANIFEST
from packtrain.errors import DatasetError, Interrupted
from packtrain.storage.locks import LOCK, WORK_FOLDER, locked
from packtrain.storage.store import LocalStore, Store

# Once it is there, all work is done, and names and manifest are as it says.
_PUBLICATION = f"{WORK_FOLDER}/publication.json"


@contextmanager
def lock_dataset(store: Store, *, shared: bool = False) -> Iterator[Callable[[], None]]:
    """Hold a dataset for this process alone, or `shared` with others; gives what raises if it is not held any more.

    Raises DatasetError if it is in use, holds other files or cannot be written; turns a full disk and Ctrl-C within the
    block into DiskFullError and Interrupted.
    """
    if isinstance(store, LocalStore) and store.root.exists() and not store.root.is_dir():
        raise DatasetError(f"--out {store.where} is a file; choose a folder that does not exist yet")
    there = store.names("")
    if there and WORK_FOLDER not in there and MANIFEST not in there:
        raise DatasetError(
            f"--out {store.where} holds other files, which are left alone; choose a folder that does not exist yet"
        )
    with store.writing(), locked(store, shared=shared) as check:
        try:
            yield check
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; finished slices are kept in {store.where}: the same command goes on from there"
            ) from None
        finally:
            if not shared:
                sweep(store)
                _tidy(store)


def announce(store: Store, manifest: bytes, moves: Sequence[tuple[str, str]]) -> None:
    """Say that all work is done: which file gets which name, and the manifest."""
    store.write(_PUBLICATION, json.dumps({"manifest": manifest.decode(), "moves": moves}).encode())


def publish(store: Store) -> None:
    """Give what was announced its place; a kill in the midst of this is taken up by the next run."""
    if store.exists(_PUBLICATION) and not store.exists(MANIFEST):
        publication = json.loads(store.read(_PUBLICATION))
        store.move([(old, new) for old, new in publication["moves"]])
        store.write(MANIFEST, publication["manifest"].encode())
    if store.exists(MANIFEST):
        clear(store)


def sweep(store: Store) -> None:
    """Remove what writers left behind that were killed; only for who holds the dataset alone."""
    if isinstance(store, LocalStore):
        store.sweep(WORK_FOLDER)


def clear(store: Store) -> None:
    """Drop what is in the work folder."""
    names = store.names(WORK_FOLDER) - {LOCK.rpartition("/")[2]}
    store.remove([f"{WORK_FOLDER}/{name}" for name in sorted(names)])


def _tidy(store: Store) -> None:
    """An empty folder is nothing to keep: neither the one for work, nor one made for a source that cannot be read."""
    if isinstance(store, LocalStore) and all(name.endswith("lock") for name in store.names(WORK_FOLDER)):
        with suppress(OSError):
            for name in store.names(WORK_FOLDER):
                (store.root / WORK_FOLDER / name).unlink()
            (store.root / WORK_FOLDER).rmdir()
            store.root.rmdir()
