"""Decides how a dataset is made on an object store: files are put whole, and an object that is renewed serves as the lock."""

import atexit
import json
import platform
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from packtrain.errors import DatasetError
from packtrain.storage.locks import LOCK, in_use

# Simultaneous requests; each spends most of its time waiting.
_THREADS = 16
_BEAT_S = 5.0
# A writer whose lock object has not changed for this long, by our own clock, is dead. Time stamps are not compared.
_DEAD_AFTER_S = 30.0


@dataclass(frozen=True)
class RemoteStore:
    """As `store.LocalStore`, in a store that fsspec reaches. A put is all or nothing. There is no rename, so a move copies."""

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
        """Write a file unless it exists; whether it was written. Exact if the store has conditional puts, as S3 does."""
        with self._reaching():
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def scratch(self, name: str) -> Path:  # noqa: ARG002  same signature as a local store's
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

    def sweep(self) -> None:
        """Nothing to do: a killed writer leaves no half of a file."""

    def free_bytes(self) -> int | None:
        return None

    def file(self, name: str) -> Path:
        return _fetch_file(self, name)

    def folder(self, name: str) -> Path:
        return _fetch_folder(self, name)

    def writing(self) -> AbstractContextManager[None]:
        # Every request reports its own errors.
        return nullcontext()

    def lock(self, *, shared: bool = False) -> AbstractContextManager[Callable[[], None]]:
        return nullcontext(lambda: None) if shared else _Heartbeat(self)

    def one_at_a_time(self, name: str) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each library behind fsspec has its own errors
            reason = str(error) or type(error).__name__
            raise DatasetError(
                f"{self.where} cannot be reached or written ({reason}); finished work is kept: fix that and run the same "
                "command again"
            ) from error

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    def _path(self, name: str) -> str:
        return f"{self._opened[1]}/{name}" if name else self._opened[1]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        # Imported only for a remote store: it takes long, and every worker would pay for it.
        from fsspec.core import url_to_fs

        # Other processes write there too, so no listing is remembered.
        fs, path = url_to_fs(self.where, use_listings_cache=False)
        return fs, path.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where}


def open_remote(url: str) -> RemoteStore:
    """The store at an fsspec URL. Raises ImportError or ValueError here, and not later in a worker, if it cannot be opened."""
    store = RemoteStore(url)
    store._opened  # noqa: B018
    return store


class _Heartbeat:
    """A lock object on a store, renewed by a thread; a context manager."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store
        self._token = uuid.uuid4().hex
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Callable[[], None]:
        while not self._store.create(LOCK, self._line(0)):
            seen = self._read()
            since = time.monotonic()
            while (now := self._read()) == seen and now is not None:
                if time.monotonic() - since > _DEAD_AFTER_S:
                    self._store.remove([LOCK])
                    break
                time.sleep(_BEAT_S / 10)
            if now is not None and now != seen:
                raise DatasetError(f"{in_use(self._store.where)} (it runs on {json.loads(now)['host']})")
        self._thread.start()
        return self.check

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        if self._is_ours():
            self._store.remove([LOCK])

    def check(self) -> None:
        if not self._is_ours():
            raise DatasetError(
                f"another process took {self._store.where} over, because this one did not respond for "
                f"{_DEAD_AFTER_S:.0f} seconds; let it finish, or stop it and run the same command again"
            )

    def _beat(self) -> None:
        count = 0
        while not self._is_over.wait(_BEAT_S):
            count += 1
            # If one beat fails to arrive, the next makes up for it.
            with suppress(DatasetError):
                if self._is_ours():
                    self._store.write(LOCK, self._line(count))

    def _is_ours(self) -> bool:
        there = self._read()
        return there is not None and json.loads(there)["token"] == self._token

    def _read(self) -> bytes | None:
        try:
            return self._store.read(LOCK)
        except FileNotFoundError:
            return None

    def _line(self, count: int) -> bytes:
        return json.dumps({"host": platform.node(), "token": self._token, "beat": count}).encode()


@lru_cache(maxsize=1)
def _scratch_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="packtrain-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _fetch_file(store: RemoteStore, name: str) -> Path:
    path = _scratch_folder() / uuid.uuid4().hex
    path.write_bytes(store.read(name))
    return path


@lru_cache(maxsize=4)
def _fetch_folder(store: RemoteStore, name: str) -> Path:
    folder = _scratch_folder() / uuid.uuid4().hex
    folder.mkdir()
    for file in store.names(name):
        (folder / file).write_bytes(store.read(f"{name}/{file}"))
    return folder
