"""Decides how a file comes into being where a dataset is made: on a local disk by a rename, on any fsspec store by one put.

Either way a name never holds half a file. Names are relative to the dataset, with slashes.
"""

import atexit
import os
import shutil
import tempfile
import uuid
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from packtrain.errors import DatasetError
from packtrain.storage.atomic import (
    TEMPORARY_PATTERN,
    disk_errors,
    flush_folder,
    flush_to_disk,
    temporary_name,
    write_atomically,
)

# Requests at once where each is mostly waiting.
_THREADS = 16


class Store(Hashable, Protocol):
    """Where a dataset is made. All of it can be sent to another process."""

    @property
    def where(self) -> str:
        """Path or URL, as the user knows it."""

    def url(self, name: str) -> str:
        """Path or URL of a file, as `files.open_raw` takes it."""

    def exists(self, name: str) -> bool: ...
    def names(self, folder: str) -> set[str]:
        """Names of the files and folders directly in a folder; none if it is not there."""

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

    def write(self, name: str, data: bytes) -> None: ...
    def scratch(self, name: str) -> Path:
        """A local path to write to what `put` will give its name."""

    def put(self, scratch: Path, name: str) -> None:
        """Give a file written at its `scratch` its name; the scratch is gone."""

    def move(self, pairs: list[tuple[str, str]]) -> None:
        """Rename files; a pair whose first is gone was moved before."""

    def remove(self, names: list[str]) -> None:
        """Files and whole folders; what is not there is no error."""

    def file(self, name: str) -> Path:
        """A local file with what is in one."""

    def folder(self, name: str) -> Path:
        """A local folder with the files of a folder."""

    def writing(self) -> Any:
        """A context that turns what goes wrong in writing into an error with a plain sentence."""


def open_store(out: str | Path) -> Store:
    """The store of a path or fsspec URL. Raises DatasetError if the library that the URL needs is missing."""
    text = str(out)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" not in text:
        # Absolute, as another process may work in another folder.
        return LocalStore(Path(text).expanduser().absolute())
    store = RemoteStore(text.rstrip("/"))
    try:
        store._opened  # noqa: B018  fails here, not in a worker
    except (ImportError, ValueError) as error:
        raise DatasetError(f"--out {out} cannot be opened: {error}") from None
    return store


def copy_command(url: str) -> str:
    """What copies a dataset from a store to a disk, whatever the store."""
    url = url.rstrip("/")
    protocol = url.partition("://")[0]
    return f"python -c \"import fsspec; fsspec.filesystem('{protocol}').get('{url}/', 'FOLDER', recursive=True)\""


@dataclass(frozen=True)
class LocalStore:
    """A folder."""

    root: Path

    @property
    def where(self) -> str:
        return str(self.root)

    def url(self, name: str) -> str:
        return str(self.root / name)

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def names(self, folder: str) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self.root / folder)}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)

    def scratch(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return temporary_name(path)

    def put(self, scratch: Path, name: str) -> None:
        path = self.root / name
        descriptor = os.open(scratch, os.O_RDONLY)
        try:
            flush_to_disk(descriptor)
        finally:
            os.close(descriptor)
        scratch.replace(path)
        flush_folder(path.parent)

    def move(self, pairs: list[tuple[str, str]]) -> None:
        folders = {(self.root / new).parent for _, new in pairs}
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for old, new in pairs:
            with suppress(FileNotFoundError):
                (self.root / old).replace(self.root / new)
        for folder in (*folders, self.root):
            flush_folder(folder)

    def remove(self, names: list[str]) -> None:
        for name in names:
            path = self.root / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def file(self, name: str) -> Path:
        return self.root / name

    def folder(self, name: str) -> Path:
        return self.root / name

    def writing(self) -> Any:
        return disk_errors(self.root)

    def sweep(self, folder: str) -> None:
        """Remove what writers left behind that were killed."""
        for path in sorted((self.root / folder).rglob(TEMPORARY_PATTERN)):
            self.remove([str(path.relative_to(self.root))])


@dataclass(frozen=True)
class RemoteStore:
    """A folder of a store that fsspec reaches. A put there is all or nothing; there is no rename, so a move copies."""

    where: str

    def url(self, name: str) -> str:
        return f"{self.where}/{name}"

    def exists(self, name: str) -> bool:
        with self._reaching():
            return bool(self._fs.exists(self._path(name)))

    def names(self, folder: str) -> set[str]:
        with self._reaching():
            try:
                found = self._fs.ls(self._path(folder), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return set()
        return {str(path).rstrip("/").rpartition("/")[2] for path in found} - {""}

    def read(self, name: str) -> bytes:
        with self._reaching():
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError as error:
                missing = error
        raise missing

    def write(self, name: str, data: bytes) -> None:
        with self._reaching():
            self._fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one; whether it was written. Exact where the store has conditional puts, as S3 does."""
        with self._reaching():
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def scratch(self, name: str) -> Path:  # noqa: ARG002  as for a local store
        return _scratch_folder() / uuid.uuid4().hex

    def put(self, scratch: Path, name: str) -> None:
        with self._reaching():
            self._fs.put_file(str(scratch), self._path(name))
        scratch.unlink()

    def move(self, pairs: list[tuple[str, str]]) -> None:
        def one(pair: tuple[str, str]) -> None:
            with suppress(FileNotFoundError):
                self._fs.copy(self._path(pair[0]), self._path(pair[1]))
                self._fs.rm_file(self._path(pair[0]))

        with self._reaching(), ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(one, pairs))

    def remove(self, names: list[str]) -> None:
        with self._reaching():
            for name in names:
                with suppress(FileNotFoundError):
                    self._fs.rm(self._path(name), recursive=True)

    def file(self, name: str) -> Path:
        return _fetched(self, name)

    def folder(self, name: str) -> Path:
        return _fetched_folder(self, name)

    def writing(self) -> Any:
        # Every request says what went wrong with it.
        return nullcontext()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each library behind fsspec has errors of its own
            reason = str(error) or type(error).__name__
            raise DatasetError(
                f"{self.where} cannot be reached or written ({reason}); what was finished is kept: mend that and run the same "
                "command again"
            ) from error

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    def _path(self, name: str) -> str:
        return f"{self._opened[1]}/{name}" if name else self._opened[1]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        # Imported where a store is remote, as it takes long and every worker would pay for it.
        from fsspec.core import url_to_fs

        # Others write there too, so no listing is ever remembered.
        fs, path = url_to_fs(self.where, use_listings_cache=False)
        return fs, path.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@lru_cache(maxsize=1)
def _scratch_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="packtrain-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _fetched(store: RemoteStore, name: str) -> Path:
    path = _scratch_folder() / uuid.uuid4().hex
    path.write_bytes(store.read(name))
    return path


@lru_cache(maxsize=4)
def _fetched_folder(store: RemoteStore, name: str) -> Path:
    folder = _scratch_folder() / uuid.uuid4().hex
    folder.mkdir()
    for file in store.names(name):
        (folder / file).write_bytes(store.read(f"{name}/{file}"))
    return folder
