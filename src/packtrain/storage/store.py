"""Decides how the files of a dataset come into being: on a local disk by a rename, on an fsspec store by one put.

Either way a name never refers to half a file. Names are relative to the dataset, with slashes.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from packtrain.errors import DatasetError
from packtrain.storage.atomic import TEMPORARY_PATTERN, disk_errors, flush_folder, temporary_name, write_atomically
from packtrain.storage.locks import LOCK, WORK_FOLDER, lock_file, wait_for_file
from packtrain.storage.remote import RemoteStore, open_remote


@dataclass(frozen=True)
class LocalStore:
    """A dataset's folder on a disk. It can be sent to another process."""

    root: Path

    @property
    def where(self) -> str:
        """Path or URL, as the user knows it."""
        return str(self.root)

    def url(self, name: str) -> str:
        """Path or URL of a file, as `files.open_raw` takes it."""
        return str(self.root / name)

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def names(self, folder: str) -> set[str]:
        """Names of the files and folders directly in a folder; none if it does not exist."""
        try:
            return {entry.name for entry in os.scandir(self.root / folder)}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)

    def scratch(self, name: str) -> Path:
        """A local path to write a file to, before `put` gives it its name."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return temporary_name(path)

    def put(self, scratch: Path, name: str) -> None:
        """Give a file written at its `scratch` its name; the scratch file is gone afterwards."""
        path = self.root / name
        descriptor = os.open(scratch, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        scratch.replace(path)
        flush_folder(path.parent)

    def move(self, pairs: list[tuple[str, str]]) -> None:
        """Rename files. If the first of a pair is gone, it was moved before."""
        folders = {(self.root / new).parent for _, new in pairs}
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for old, new in pairs:
            with suppress(FileNotFoundError):
                (self.root / old).replace(self.root / new)
        for folder in (*folders, self.root):
            flush_folder(folder)

    def remove(self, names: list[str]) -> None:
        """Remove files and whole folders; a missing one is not an error."""
        for name in names:
            path = self.root / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what killed writers left in the work folder and beside the manifest. Only who holds the dataset alone may do so."""
        left = sorted([*self.root.glob(TEMPORARY_PATTERN), *(self.root / WORK_FOLDER).rglob(TEMPORARY_PATTERN)])
        self.remove([str(path.relative_to(self.root)) for path in left])

    def free_bytes(self) -> int | None:
        """Space that is left for new files; None if the store does not say."""
        return shutil.disk_usage(self.root).free

    def file(self, name: str) -> Path:
        """A local file with the same content."""
        return self.root / name

    def folder(self, name: str) -> Path:
        """A local folder with the same files."""
        return self.root / name

    def writing(self) -> AbstractContextManager[None]:
        """A context that turns a full disk into DiskFullError."""
        return disk_errors(self.root)

    @contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[Callable[[], None]]:
        """Hold the dataset alone, or `shared` with others that do the same. Raises DatasetError if another holds it.

        Gives a function that raises DatasetError if the lock was lost; call it before anything that cannot be undone.

        On a file system the lock ends with the process, however that ends. On an object store an object says who writes and
        is renewed every five seconds; after half a minute without a change another process takes over, and `shared` takes no
        lock. If two processes still write at once, they write equal bytes under equal names.
        """
        if self.root.exists() and not self.root.is_dir():
            raise DatasetError(f"--out {self.where} is a file; choose a folder that does not exist yet")
        with lock_file(self.root / LOCK, self.where, shared=shared):
            try:
                yield lambda: None
            finally:
                if not shared:
                    self._remove_empty_folders()

    def one_at_a_time(self, name: str) -> AbstractContextManager[None]:
        """Wait until no other process is in the block of this name. On an object store, each process does the work itself."""
        return wait_for_file(self.root / WORK_FOLDER / f"{name}.lock", self.where)

    def _remove_empty_folders(self) -> None:
        """Remove the work folder if only locks are left in it, and the dataset's if it is empty, as after a bad source."""
        names = self.names(WORK_FOLDER)
        if all(name.endswith("lock") for name in names):
            with suppress(OSError):
                for name in names:
                    (self.root / WORK_FOLDER / name).unlink()
                (self.root / WORK_FOLDER).rmdir()
                self.root.rmdir()


Store = LocalStore | RemoteStore
"""The place where a dataset is made: both have the same methods, described at LocalStore."""


def open_store(out: str | Path) -> Store:
    """The store of a path or fsspec URL. Raises DatasetError if the library that the URL needs is missing."""
    text = str(out).removeprefix("file://")
    if "://" not in text:
        # Absolute, because another process may work in another folder.
        return LocalStore(Path(text).expanduser().absolute())
    try:
        return open_remote(text.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise DatasetError(f"--out {out} cannot be opened: {error}") from None


def copy_command(url: str) -> str:
    """A command that copies a dataset from any store to a disk."""
    url = url.rstrip("/")
    protocol = url.partition("://")[0]
    return f"python -c \"import fsspec; fsspec.filesystem('{protocol}').get('{url}/', 'FOLDER', recursive=True)\""
