"""Decides who may write to a folder on a local or network disk: one process alone, or several that share the work."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packtrain.errors import DatasetError
from packtrain.storage.atomic import NO_ROOM

WORK_FOLDER = ".work"
LOCK = f"{WORK_FOLDER}/lock"


@contextmanager
def lock_file(path: Path, where: str, *, shared: bool) -> Iterator[None]:
    """Hold the lock of a file, alone or `shared` with others, until the block or the process ends.

    Raises DatasetError if another process holds it; `where` names the dataset in errors.
    """
    while True:
        with _open(path, where) as descriptor:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DatasetError(in_use(where)) from None
            except OSError as error:
                # What NFS and Lustre answer if they are mounted without locks.
                if error.errno not in {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}:
                    raise
                raise DatasetError(
                    f"the file system of --out {where} has no file locks ({error.strerror}), so a second writer could not be "
                    "detected; mount it with locks (Lustre: -o flock), or choose another folder"
                ) from None
            if is_same_file(descriptor, path):
                yield
                return
        # The process that held the lock removed the file before we got it: try again with a new file.


@contextmanager
def wait_for_file(path: Path, where: str) -> Iterator[None]:
    """Hold the lock of a file alone; wait while another process holds it."""
    with _open(path, where) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def in_use(where: str) -> str:
    """The error for a second writer."""
    return f"{where} is being prepared by another process; wait for it, or choose another --out"


@contextmanager
def _open(path: Path, where: str) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Open for writing: NFS refuses an exclusive lock on a file that is open only for reading.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise DatasetError(f"--out {where} cannot be written ({error.strerror}); choose another folder") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that a path names now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
