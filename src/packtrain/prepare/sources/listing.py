"""Decides which files a path means: a file, folder, glob or URL, with links followed.

As in the shell, hidden files and folders are passed over unless the path names them.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packtrain.errors import SourceError
from packtrain.prepare.sources.slices import SourceFile
from packtrain.storage.files import FOREIGN_COMPRESSIONS, filesystem, reading, strip_compression

_GLOB = "*?["


def list_files(path: str, suffixes: Sequence[str]) -> list[SourceFile]:
    """The files that a path means, sorted by name: a file, a glob, an fsspec URL, or a folder's files with these suffixes.

    Raises SourceError if there are none, naming what is there instead, and for a file or folder that cannot be read.
    """
    fs, root = filesystem(path)
    is_local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    with reading(path):
        files = _local_files(root, path, suffixes) if is_local else _remote_files(fs, root, path, suffixes)
    return sorted(files, key=lambda file: file.name)


def _local_files(root: str, path: str, suffixes: Sequence[str]) -> list[SourceFile]:
    try:
        is_folder = stat.S_ISDIR(Path(root).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if not _is_glob(root):
            raise _missing(path) from None
        from fsspec.utils import glob_translate

        base = _before_pattern(root)
        matches = re.compile(glob_translate(root)).match
        depth = None if "**" in root else root[len(base) :].count("/")
        names = [name for name in _walk(base, depth, hidden=True) if matches(name) and _is_asked_for(name, root, base)]
        if not names:
            raise _no_match(path) from None
    else:
        base = root.rstrip("/") if is_folder else root.rpartition("/")[0]
        names = _with_suffix(list(_walk(base, None, hidden=False)), base, path, suffixes) if is_folder else [root]
    return [_local_file(name, base) for name in names]


def _walk(base: str, depth: int | None, *, hidden: bool) -> Iterator[str]:
    """Yield the files of a folder and of the folders in it, down to a depth. A folder that links reach twice is read once."""
    seen = set()

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(base or "/", onerror=refuse, followlinks=True):
        status = Path(folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        inside = folder.rstrip("/")
        is_deepest = depth is not None and inside[len(base) :].count("/") + 1 >= depth
        folders[:] = [] if is_deepest else sorted(name for name in folders if hidden or not name.startswith("."))
        yield from (f"{inside}/{name}" for name in names if hidden or not name.startswith("."))


def _local_file(name: str, base: str) -> SourceFile:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SourceError(f"the name of the source file {name!a} is not UTF-8; give it another name") from None
    with reading(name):
        status = Path(name).stat()
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(
            f"{name} is a pipe, device or the like, which cannot be read twice; write its content to a file, and name that"
        )
    return SourceFile(_relative(name, base), name, status.st_size)


def _remote_files(fs: Any, root: str, path: str, suffixes: Sequence[str]) -> list[SourceFile]:
    if _is_glob(root) and not fs.exists(root):
        base = _before_pattern(root)
        matched = (f for f in fs.glob(root, detail=True).values() if f["type"] == "file")
        found = {f["name"]: f for f in matched if _is_asked_for(f["name"], root, base)}
        if not found:
            raise _no_match(path)
    elif fs.isdir(root):
        base = root.rstrip("/")
        every = {f["name"]: f for f in fs.find(base, detail=True).values() if "/." not in f["name"][len(base) :]}
        found = {name: every[name] for name in _with_suffix(list(every), base, path, suffixes)}
    elif fs.exists(root):
        base, info = root.rpartition("/")[0], fs.info(root)
        found = {info["name"]: info}
    else:
        raise _missing(path)
    return [SourceFile(_relative(n, base), fs.unstrip_protocol(n), int(f["size"] or 0)) for n, f in found.items()]


def _is_asked_for(name: str, pattern: str, base: str) -> bool:
    """Whether a path that a pattern matches has no more hidden parts than the pattern names."""

    def count_hidden(path: str) -> int:
        return sum(part.startswith(".") for part in _relative(path, base).split("/"))

    return count_hidden(name) <= count_hidden(pattern)


def _with_suffix(names: Sequence[str], base: str, path: str, suffixes: Sequence[str]) -> list[str]:
    named = tuple(filter(None, suffixes))
    foreign = sorted(name for name in names if named and _without_foreign(name.lower()).endswith(named))
    if foreign:
        raise SourceError(
            f"the folder {path} has {_relative(foreign[0], base)}, which is compressed in a way that is not read; decompress it, "
            "compress it as .gz or .zst, or write a glob such as 'FOLDER/**/*.EXT' that leaves it out"
        )
    found = [name for name in names if strip_compression(name.lower()).endswith(tuple(suffixes))]
    if not found:
        others = ", ".join(sorted(_relative(name, base) for name in names)[:4]) or "no file at all"
        raise SourceError(
            f"the folder {path} has no file ending in {' or '.join(suffixes)} (it has {others}); "
            "name another folder, or write a glob such as 'FOLDER/**/*.EXT' to take files with another ending"
        )
    return found


def _without_foreign(name: str) -> str:
    """A name without an ending of FOREIGN_COMPRESSIONS; nothing if it has none."""
    return next((name.removesuffix(s) for s in FOREIGN_COMPRESSIONS if name.endswith(s)), "")


def _is_glob(root: str) -> bool:
    return any(c in root for c in _GLOB)


def _before_pattern(root: str) -> str:
    return root[: min(root.index(c) for c in _GLOB if c in root)].rpartition("/")[0]


def _relative(name: str, base: str) -> str:
    return name[len(base) :].lstrip("/") if name.startswith(base) else name


def _missing(path: str) -> SourceError:
    return SourceError(f"source.path={path} does not exist; write the path of a file or folder, a glob or a URL")


def _no_match(path: str) -> SourceError:
    return SourceError(f"source.path={path} matches no file; check the pattern (** matches folders at any depth)")
