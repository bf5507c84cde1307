"""Decides when an export becomes visible: it is built in a folder beside its target, then renamed or removed."""

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors

from packtrain.errors import DiskFullError, ExportError
from packtrain.pretrained.trained_on import SEAL
from packtrain.runs.layout import write_json
from packtrain.storage.atomic import NO_ROOM, flush_folder, hash_file, is_no_room
from packtrain.storage.json_file import parse_json
from packtrain.storage.locks import is_same_file
from packtrain.storage.regular import read_regular


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raises ExportError unless `out` does not exist, is empty, or is an earlier export that may be replaced."""
    _refuse_link(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file, but an export is a folder; choose another --out")
    foreign = _foreign_files(out)
    if foreign is None:
        raise ExportError(
            f"{out} exists and is not an export made by packtrain; choose an --out folder that does not exist yet"
        )
    if foreign:
        raise ExportError(
            f"{out} contains {foreign[0]}, which packtrain did not write; move it away or choose another --out"
        )
    if not overwrite:
        raise ExportError(f"{out} is an earlier export; add --overwrite to replace it, or choose another --out")


@contextlib.contextmanager
def staged(out: Path, *, overwrite: bool, needed_bytes: int) -> Iterator[Path]:
    """A folder beside `out` to build in. If the block succeeds, it replaces `out`; otherwise it is removed.

    Raises ExportError if `out` may not be replaced or another process exports to it, and DiskFullError if `needed_bytes`
    are not free or the disk fills up. An earlier export is unchanged in each case.
    """
    _refuse_link(out)
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            _restore(out)
            check_target(out, overwrite=overwrite)
            _check_free_space(out.parent, needed_bytes)
            aside = out.with_name(f".{out.name}.partial")
            # Left by an export that was killed.
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir()
                yield aside
                _flush_tree(aside)
                _replace(aside, out)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        if _is_disk_full(error):
            raise DiskFullError(
                f"the disk of {out.parent} is full; free some space, or choose an --out on another disk"
            ) from None
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError):
            raise ExportError(f"{out} cannot be written ({error.strerror}); choose another --out") from None
        raise


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Writes the file that marks a folder as an export: `facts`, and the hash of every other file."""
    files = {name: hash_file(folder / name) for name in sorted(_relative_files(folder))}
    write_json(folder / SEAL, {**facts, "files": files})


def _refuse_link(out: Path) -> None:
    """An export never writes through a link."""
    if out.is_symlink():
        raise ExportError(f"{out} is a link to {out.readlink()}; write --out with that folder itself, or another one")


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keeps other exports away from `out` for the length of the block. Raises ExportError if another process is there."""
    path = out.with_name(f".{out.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            # A file system without locks (NFS, Lustre) has none to wait for.
            with contextlib.suppress(OSError):
                _flock(descriptor, out)
            if is_same_file(descriptor, path):
                try:
                    yield
                    return
                finally:
                    path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
        # The process that held the lock removed the file before we got it: try again with a new file.


def _flock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ExportError(
            f"another process exports to {out} now; wait until it ends, or choose another --out"
        ) from None


def _foreign_files(folder: Path) -> list[str] | None:
    """Files that the folder's seal does not name; None if there is no seal."""
    try:
        named = set(parse_json(read_regular(folder / SEAL))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sorted(_relative_files(folder) - named - {SEAL})


def _relative_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def _check_free_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DiskFullError(
            f"the disk of {folder} has {free / 1e9:.2f} GB free and the export needs {needed_bytes / 1e9:.2f} GB; free some "
            "space, or choose an --out on another disk"
        )


def _is_disk_full(error: OSError | safetensors.SafetensorError) -> bool:
    # safetensors writes files from Rust and gives the system's error only as text.
    if isinstance(error, OSError):
        return is_no_room(error)
    return any(f"os error {number})" in str(error) for number in NO_ROOM)


def _replace(aside: Path, out: Path) -> None:
    old = _old_name(out)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        _restore(out)
        raise
    flush_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _restore(out: Path) -> None:
    """Restores the old export if the program was killed between the two renames of a replacement."""
    old = _old_name(out)
    if old.exists() and not out.exists():
        old.rename(out)


def _old_name(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def _flush_tree(folder: Path) -> None:
    """Waits until every file is on the disk, with the permissions that this user's files have."""
    # safetensors gives files to their owner alone, whatever the umask, which can only be asked of a new file.
    probe = folder / ".permissions"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for name in _relative_files(folder):
        with (folder / name).open("rb") as handle:
            with contextlib.suppress(PermissionError):
                os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
    flush_folder(folder)
