"""Decides who may write a dataset: one process, or several that do a range of its slices each, and nobody after a kill."""

import errno
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from packtrain.errors import DatasetError
from packtrain.storage.atomic import NO_ROOM
from packtrain.storage.store import LocalStore, RemoteStore, Store

WORK_FOLDER = ".work"
LOCK = f"{WORK_FOLDER}/lock"
# What NFS and Lustre answer where they are mounted without locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_BEAT_S = 5.0
# A writer whose lock object stands still for so long, by our own clock, is dead: no time stamp of anyone's is looked at.
_DEAD_AFTER_S = 30.0


@contextmanager
def locked(store: Store, *, shared: bool = False) -> Iterator[Callable[[], None]]:
    """Hold a dataset alone, or with `shared` beside others that do the same. Raises DatasetError if another has it.

    Gives what raises DatasetError if the lock was lost meanwhile; to be called before anything that cannot be undone.

    On a file system the lock ends with the process, however that ends. A store has no locks: there an object says who
    writes, and is renewed every five seconds; one that stands still for half a minute is taken over. `shared` takes none
    there. Should two write at once in spite of it, they write equal bytes under equal names.
    """
    if isinstance(store, LocalStore):
        with _file_lock(store.root / LOCK, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, store.where):
            yield _no_check
        return
    assert isinstance(store, RemoteStore)
    if shared:
        yield _no_check
        return
    with _Heartbeat(store) as check:
        yield check


@contextmanager
def one_at_a_time(store: Store, name: str) -> Iterator[None]:
    """Wait until no other process is in the block of this name. On a store that has no locks, each does the work itself."""
    if not isinstance(store, LocalStore):
        yield
        return
    with _opened(store.root / WORK_FOLDER / f"{name}.lock", store.where) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _no_check() -> None:
    return None


@contextmanager
def _file_lock(path: Path, kind: int, where: str) -> Iterator[None]:
    while True:
        with _opened(path, where) as descriptor:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DatasetError(_in_use(where)) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                raise DatasetError(
                    f"the file system of --out {where} has no file locks ({error.strerror}), so two writers could not be told "
                    "apart; mount it with locks (Lustre: -o flock), or choose another folder"
                ) from None
            if _is_same(descriptor, path):
                yield
                return
        # Whoever had it removed the file in between.


@contextmanager
def _opened(path: Path, where: str) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # For writing: NFS gives an exclusive lock on nothing less.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise DatasetError(f"--out {where} cannot be written ({error.strerror}); choose another folder") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)


def _in_use(where: str) -> str:
    return f"{where} is being prepared by another process; wait for it, or choose another --out"


class _Heartbeat:
    """A lock object on a store, renewed by a thread; a context."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store
        self._token = uuid.uuid4().hex
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Callable[[], None]:
        while not self._store.create(LOCK, self._line(0)):
            seen = _read(self._store)
            since = time.monotonic()
            while (now := _read(self._store)) == seen and now is not None:
                if time.monotonic() - since > _DEAD_AFTER_S:
                    self._store.remove([LOCK])
                    break
                time.sleep(_BEAT_S / 10)
            if now is not None and now != seen:
                raise DatasetError(f"{_in_use(self._store.where)} (it runs on {json.loads(now)['host']})")
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
                f"another process took {self._store.where} over, as this one stood still for long; let it finish, or stop it and "
                "run the same command again"
            )

    def _beat(self) -> None:
        count = 0
        while not self._is_over.wait(_BEAT_S):
            count += 1
            # A beat that does not get through is made up for by the next.
            with suppress(DatasetError):
                if self._is_ours():
                    self._store.write(LOCK, self._line(count))

    def _is_ours(self) -> bool:
        there = _read(self._store)
        return there is not None and json.loads(there)["token"] == self._token

    def _line(self, count: int) -> bytes:
        return json.dumps({"host": platform.node(), "token": self._token, "beat": count}).encode()


def _read(store: RemoteStore) -> bytes | None:
    try:
        return store.read(LOCK)
    except FileNotFoundError:
        return None
