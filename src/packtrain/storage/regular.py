"""Decides which files are read: regular ones. A pipe, a device or a socket would block or never end."""

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}


class IrregularFileError(OSError):
    """A file that is not a regular one."""


def read_regular(path: Path) -> bytes:
    """The content of a file, through links. Raises IrregularFileError if it is not a regular file, and never waits for one."""
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = _name_kind(os.fstat(descriptor).st_mode)
        if kind is not None:
            raise IrregularFileError(errno.EINVAL, f"it is {kind}, not a file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def is_regular(path: Path) -> bool:
    """Whether a path names a file that is neither a link nor a device, pipe or folder. Opening a pipe would wait forever."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def find_irregular(folder: Path) -> str | None:
    """The first entry of a folder that is a link or not a regular file, in words; None if all are files."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        kind = _name_kind(entry.stat(follow_symlinks=False).st_mode)
        if kind is not None:
            return f"{entry.name} is {kind}, not a file"
    return None


def explain(error: OSError) -> str:
    """Why a file cannot be read and what to do about it, to stand in brackets after its name."""
    if isinstance(error, PermissionError):
        return f"{error.strerror}: allow this user to read it"
    return error.strerror or type(error).__name__


def _name_kind(mode: int) -> str | None:
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "not a regular file")
