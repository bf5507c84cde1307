"""Decides where a plan's arrays are kept between runs: beside the dataset, or else in the user's cache; mapped when loaded.

A plan is a folder: `NAME.bin` for each array, raw and little-endian, and `plan.json`, which describes them. It is written
under another name and renamed, so that it is never seen half done. Processes that want the same plan wait for the first of
them. Loading checks the hashes. A plan that cannot be kept, or that is damaged, is laid out again.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from packtrain.storage.atomic import TEMPORARY_PATTERN, flush_folder, hash_file, temporary_name
from packtrain.storage.mapped import expect_random_reads
from packtrain.storage.regular import read_regular

Arrays = Mapping[str, np.ndarray]

FORMAT_VERSION = 1
_HEAD = "plan.json"
# Of the arrays in a plan: names become parts of paths.
_NAME, _DTYPE = re.compile(r"[a-z_]+"), re.compile(r"[<|][iu][1248]")
_log = logging.getLogger("packtrain")


class _DamagedError(Exception):
    pass


class _NotWritableError(Exception):
    pass


def load_or_build(
    folder: Path | None, name: str, make: Callable[[], Iterable[Arrays]], fits: Callable[[Arrays], bool]
) -> Arrays:
    """The arrays that `make` gives in parts, each joined; from a cache if they were made before.

    `name` stands for everything that they depend on; `fits` says whether loaded arrays can be the right ones. They are kept in
    `folder` or, if that cannot be written, in the user's cache folder; in memory if neither can, or if `folder` is None.
    """
    places = [] if folder is None else [folder, *_user_folder()]
    for place in places:
        found = _load_or_warn(place / name, fits)
        if found is not None:
            return found
    problem = None
    for place in places:
        try:
            with _locked(place):
                # Another process may have made it while this one waited.
                found = _load_or_warn(place / name, fits, is_silent=True)
                if found is None:
                    _write(place / name, make())
                    found = _load_or_warn(place / name, fits)
            if found is not None:
                return found
        except _NotWritableError as error:
            problem = error
    if problem is not None:
        _log.warning(
            "the plan of the rows cannot be kept (%s), so each process lays it out again at each start", problem
        )
    return _joined(make())


def _user_folder() -> list[Path]:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return [(Path(given) if given else Path.home() / ".cache") / "packtrain" / "plans"]
    except RuntimeError:
        # A container's user without a name has no home.
        return []


def _joined(parts: Iterable[Arrays]) -> Arrays:
    found: dict[str, list[np.ndarray]] = {}
    for part in parts:
        for name, array in part.items():
            found.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def _load_or_warn(plan: Path, fits: Callable[[Arrays], bool], *, is_silent: bool = False) -> Arrays | None:
    try:
        arrays = _load(plan)
        if arrays is None or fits(arrays):
            return arrays
        problem = "it belongs to another dataset"
    except _DamagedError as error:
        problem = str(error)
    if not is_silent:
        _log.warning("the kept plan %s is not used, because %s; it is laid out again", plan, problem)
    return None


def _load(plan: Path) -> Arrays | None:
    """The arrays of a kept plan, mapped; None if there is none, or it may not be read."""
    try:
        head = json.loads(read_regular(plan / _HEAD))
        content = head["content"]
        if head["hash"] != _hash(content) or content["format_version"] != FORMAT_VERSION:
            raise _DamagedError(f"its {_HEAD} is damaged or of another version")
        arrays = {}
        for name, file in content["arrays"].items():
            if not (_NAME.fullmatch(name) and _DTYPE.fullmatch(file["dtype"])):
                raise _DamagedError(f"its {_HEAD} has a name or a type that no plan has")
            path = plan / f"{name}.bin"
            # A special file has no size.
            if path.stat().st_size != file["size"] or not path.is_file() or hash_file(path) != file["hash"]:
                raise _DamagedError(f"the content of {path.name} has changed")
            arrays[name] = _map(path, np.dtype(file["dtype"]), file["size"])
        return arrays
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        if (plan / _HEAD).is_file() and os.access(plan / _HEAD, os.R_OK):
            raise _DamagedError("one of its files is missing or cannot be read") from None
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _DamagedError(f"it cannot be read ({error})") from None


def _map(path: Path, dtype: np.dtype[Any], size: int) -> np.ndarray:
    if not size:
        return np.empty(0, dtype=dtype)
    # A plain view: np.memmap costs a microsecond more for each slice.
    array = np.asarray(np.memmap(path, dtype=dtype, mode="r"))
    expect_random_reads(array)
    return array


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Let one process at a time write to a folder, which is made if it is missing, as far as its file system has locks."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            raise _NotWritableError(f"{place}: it is a link")
        # A dataset may come from elsewhere: a link there would have another file changed.
        handle = os.open(place / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _NotWritableError(f"{place}: {os.strerror(error.errno or 0)}") from None
    with os.fdopen(handle, "r+b", buffering=0):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process that lays out rows in %s", place)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            # Two processes may then make the same plan; the first one stays.
            _log.debug("no locks in %s (%s)", place, error)
        yield


class _ArrayFile:
    """An array that grows on the disk."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._digest = xxhash.xxh3_128()
        self._dtype = dtype
        self._size = 0

    def append(self, array: np.ndarray) -> None:
        assert array.dtype == self._dtype
        data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).data.cast("B")
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def finish(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        dtype = self._dtype.newbyteorder("<").str
        return {"dtype": dtype, "size": self._size, "hash": self._digest.hexdigest()}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _write(plan: Path, parts: Iterable[Arrays]) -> None:
    """Raises _NotWritableError if the disk is full or read-only. Errors of `parts` pass through."""
    aside = temporary_name(plan)
    files: dict[str, _ArrayFile] = {}
    try:
        with _writing(plan.parent):
            # Left by processes that were killed: living ones wait for the lock.
            for left in plan.parent.glob(TEMPORARY_PATTERN):
                shutil.rmtree(left, ignore_errors=True)
            aside.mkdir()
        for part in parts:
            with _writing(plan.parent):
                for name, array in part.items():
                    if name not in files:
                        files[name] = _ArrayFile(aside / f"{name}.bin", array.dtype)
                    # An empty array has no buffer to write.
                    if array.size:
                        files[name].append(array)
        with _writing(plan.parent):
            arrays = {name: file.finish() for name, file in files.items()}
            content = {"format_version": FORMAT_VERSION, "arrays": arrays}
            with (aside / _HEAD).open("w") as head:
                json.dump({"content": content, "hash": _hash(content)}, head)
                head.flush()
                os.fsync(head.fileno())
            flush_folder(aside)
            if plan.exists():
                # It is damaged, or it would have been loaded.
                shutil.rmtree(plan)
            aside.rename(plan)
            flush_folder(plan.parent)
    finally:
        for file in files.values():
            file.close()
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _NotWritableError(f"{place}: {os.strerror(error.errno or 0)}") from None


def _hash(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
