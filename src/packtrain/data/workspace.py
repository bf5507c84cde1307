"""Decides who may write in a dataset's folder, where unfinished work lies in it, and how a finished dataset gets its place."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from packtrain.data.atomic import TEMPORARY_PATTERN, disk_errors, flush_folder
from packtrain.data.shards import MANIFEST, SPLITS, TOKENIZER_FOLDER
from packtrain.errors import DatasetError, Interrupted

WORK_FOLDER = ".work"


@contextmanager
def held(out: Path) -> Iterator[Path]:
    """Hold `out` for this process alone; gives the folder in it for unfinished work.

    Raises DatasetError if `out` is in use, holds other files or cannot be written; turns a full disk and Ctrl-C within the
    block into DiskFullError and Interrupted.
    """
    if out.exists() and not out.is_dir():
        raise DatasetError(f"--out {out} is a file; choose a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()) and not (out / WORK_FOLDER).is_dir() and not (out / MANIFEST).is_file():
        raise DatasetError(
            f"--out {out} holds other files, which are left alone; choose a folder that does not exist yet"
        )
    with disk_errors(out):
        descriptor = _lock(out)
        try:
            yield out / WORK_FOLDER
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; finished slices are kept in {out}: the same command goes on from there"
            ) from None
        finally:
            # An empty folder is nothing to keep: neither the one for work, nor one made for a source that cannot be read.
            with suppress(OSError):
                (out / WORK_FOLDER).rmdir()
                out.rmdir()
            os.close(descriptor)


def publish(out: Path) -> None:
    """Give a complete dataset in the work folder its place; a kill in the midst of this is taken up by the next run."""
    ready = sorted((out / WORK_FOLDER).glob(f"*/{MANIFEST}"))
    if ready and not (out / MANIFEST).is_file():
        folder = ready[0].parent
        for name in (TOKENIZER_FOLDER, *SPLITS):
            if (folder / name).is_dir():
                (folder / name).rename(out / name)
        flush_folder(out)
        (folder / MANIFEST).rename(out / MANIFEST)
        flush_folder(out)
    if (out / MANIFEST).is_file():
        clear(out)


def sweep(folder: Path) -> None:
    """Remove what writers left behind that were killed."""
    for path in folder.rglob(TEMPORARY_PATTERN):
        path.unlink(missing_ok=True)


def clear(out: Path) -> None:
    """Drop what is in the work folder."""
    shutil.rmtree(out / WORK_FOLDER)
    (out / WORK_FOLDER).mkdir()


def _lock(out: Path) -> int:
    """An open descriptor of `out` whose lock ends with this process, however that ends."""
    try:
        (out / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY)
    except PermissionError as error:
        raise DatasetError(f"--out {out} cannot be written ({error.strerror}); choose another folder") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DatasetError(
            f"{out} is being prepared by another process; wait for it, or choose another --out"
        ) from None
    return descriptor
