"""Decides how a file is written: under another name, flushed to the disk, then renamed, so that it is never seen half done."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from packtrain.errors import DiskFullError, UserError

TEMPORARY_PATTERN = ".*.tmp"
# EFBIG is how a quota fails, or a file system that cannot hold a file of this size.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of a full disk, while writing under `folder`, into DiskFullError, and those of a removed one into UserError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.exists():
            raise UserError(
                f"{folder} was removed or renamed while packtrain wrote there; put it back, or run the same command again to "
                "start over"
            ) from None
        if not is_no_room(error):
            raise
        reason = os.strerror(error.errno or errno.ENOSPC)
        raise DiskFullError(
            f"there is no room left on the disk of {folder} ({reason}); finished work is kept: "
            "free some space and run the same command again"
        ) from None


def is_no_room(error: Exception) -> bool:
    """Whether an error says that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file. Whatever happens meanwhile, `path` keeps its old content or has all of `data`."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    flush_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """The name under which `path` is written before it is renamed.

    Each call gives a new one, so that a slow process, here or on another machine that shares the disk, cannot overwrite it.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_bytes(data: bytes) -> str:
    """xxh3-128 of some bytes, in hexadecimal."""
    return xxhash.xxh3_128(data).hexdigest()


def hash_file(path: Path) -> str:
    """xxh3-128 of a file's content, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
