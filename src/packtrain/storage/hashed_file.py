"""Decides how a checkpoint's bytes reach the disk: past the page cache if the system can, and hashed on the way.

A write through the cache copies every page once more, and the cores that train then have to flush and free those pages.
"""

import ctypes
import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import Self

import xxhash
from torch import Tensor

BUFFER_BYTES = 2**22
# Some systems lack it, and some file systems refuse it.
_DIRECT = getattr(os, "O_DIRECT", 0)


class HashedFile:
    """A new file, written once from front to back; also a context manager. Raises the disk's OSError as it is."""

    def __init__(self, path: Path) -> None:
        self._descriptor = _open(path)
        # Mapped memory begins at the start of a page.
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._filled = 0
        self._digest = xxhash.xxh3_128()

    def write(self, tensor: Tensor) -> None:
        """Append the bytes of a contiguous tensor on the CPU. Other threads run meanwhile."""
        done = 0
        while done < tensor.nbytes:
            size = min(tensor.nbytes - done, BUFFER_BYTES - self._filled)
            # Not through numpy: a storage that numpy has seen cannot be resized, which is how sharding frees it.
            ctypes.memmove(self._address + self._filled, tensor.data_ptr() + done, size)
            done, self._filled = done + size, self._filled + size
            if self._filled == BUFFER_BYTES:
                self._pass_on()

    def finish(self) -> str:
        """Write the rest, wait until all of it is on the disk, and return the xxh3-128 of all bytes, in hexadecimal."""
        self._pass_on()
        os.fsync(self._descriptor)
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _pass_on(self) -> None:
        with memoryview(self._buffer) as whole, whole[: self._filled] as filled:
            self._digest.update(filled)
            done = 0
            while done < len(filled):
                # Direct writes need memory, sizes and offsets that are multiples of a block.
                if (len(filled) - done) % 4096:
                    self._go_through_cache()
                with filled[done:] as rest:
                    done += self._write_some(rest)
        self._filled = 0

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            # The file system accepts the flag but not the write, or a size limit is not a multiple of a block.
            if error.errno != errno.EINVAL or not self._go_through_cache():
                raise
            return 0

    def _go_through_cache(self) -> bool:
        """Stop direct writes; whether that changed anything."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
        return bool(flags & _DIRECT)


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)
