"""Decides when an export becomes visible: built in a folder aside, then renamed in one step, or gone without a trace."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors

from packtrain.errors import DiskFullError, ExportError
from packtrain.runs.layout import write_json
from packtrain.storage.atomic import NO_ROOM, flush_folder, flush_to_disk, hash_file, is_no_room

SEAL = "packtrain.json"


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raises ExportError unless `out` is free, empty, or an earlier export that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file and an export is a folder; give another --out")
    foreign = _foreign_files(out)
    if foreign is None:
        raise ExportError(f"{out} exists and is no export of packtrain's; give an --out folder that does not exist yet")
    if foreign:
        raise ExportError(
            f"{out} holds {foreign[0]}, which packtrain did not write; move it away or give another --out"
        )
    if not overwrite:
        raise ExportError(f"{out} is an earlier export; give --overwrite to replace it, or another --out")


@contextlib.contextmanager
def staged(out: Path, *, overwrite: bool, needed_bytes: int) -> Iterator[Path]:
    """A folder beside `out` to build in; it takes the place of `out` if the block ends well, else it is removed.

    Raises ExportError where `out` may not be replaced, DiskFullError where there is no room for `needed_bytes` or it
    runs out; an earlier export stays as it was in either case.
    """
    out = out.resolve()
    _put_back(out)
    check_target(out, overwrite=overwrite)
    aside = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_room(out.parent, needed_bytes)
        # What an export that was killed has left.
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        _sync_tree(aside)
        _take_place(aside, out)
    except (OSError, safetensors.SafetensorError) as error:
        if _is_disk_full(error):
            raise DiskFullError(
                f"the disk of {out.parent} is full; free some room or give an --out elsewhere"
            ) from None
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError):
            raise ExportError(f"{out} cannot be written ({error.strerror}); give another --out") from None
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Writes the file that makes a folder known as an export: `facts`, and the hash of every other file."""
    files = {name: hash_file(folder / name) for name in sorted(_relative_files(folder))}
    write_json(folder / SEAL, {**facts, "files": files})


def _foreign_files(folder: Path) -> list[str] | None:
    """Files that the folder's seal does not name; None where there is no seal."""
    try:
        named = json.loads((folder / SEAL).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sorted(_relative_files(folder) - set(named) - {SEAL})


def _relative_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DiskFullError(
            f"the disk of {folder} has {free / 1e9:.2f} GB left and the export needs {needed_bytes / 1e9:.2f} GB; free "
            "some room or give an --out elsewhere"
        )


def _is_disk_full(error: OSError | safetensors.SafetensorError) -> bool:
    # safetensors writes from Rust and passes the system's error on as text.
    if isinstance(error, OSError):
        return is_no_room(error)
    return any(f"os error {number})" in str(error) for number in NO_ROOM)


def _take_place(aside: Path, out: Path) -> None:
    old = _old_name(out)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        _put_back(out)
        raise
    flush_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _put_back(out: Path) -> None:
    """Undoes half of a replacement, should the program have been killed between its two renames."""
    old = _old_name(out)
    if old.exists() and not out.exists():
        old.rename(out)


def _old_name(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def _sync_tree(folder: Path) -> None:
    for name in _relative_files(folder):
        with (folder / name).open("rb") as handle:
            flush_to_disk(handle.fileno())
    flush_folder(folder)
