"""Decides which files a path means and how one is opened: local or any fsspec URL, compressed or not."""

import gzip
import importlib
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from packtrain.data.slices import SourceFile
from packtrain.errors import SourceError

COMPRESSIONS = (".gz", ".zst")
_CHUNK = 1 << 20
_GLOB = "*?["


def list_files(path: str, suffixes: Sequence[str]) -> list[SourceFile]:
    """The files that a file, folder, glob or fsspec URL means, by name; of a folder, at any depth, those with a suffix.

    Raises SourceError if there is none, naming what is there instead.
    """
    fs, root = filesystem(path)
    with reading(path):
        if any(c in root for c in _GLOB) and not fs.exists(root):
            base = root[: min(root.index(c) for c in _GLOB if c in root)].rpartition("/")[0]
            found = [f for f in fs.glob(root, detail=True).values() if f["type"] == "file"]
            if not found:
                raise SourceError(f"source.path={path} matches no file; check the pattern (** goes into folders)")
        elif fs.isdir(root):
            base = root.rstrip("/")
            found = _in_folder(fs, base, suffixes, path)
        elif fs.exists(root):
            base, found = root.rpartition("/")[0], [fs.info(root)]
        else:
            raise SourceError(f"source.path={path} does not exist; write the path of a file or folder, a glob or a URL")
    return sorted((_source_file(fs, entry, base) for entry in found), key=lambda file: file.name)


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path in it. Raises SourceError if its library is missing."""
    from fsspec.core import url_to_fs

    try:
        return cast(tuple[Any, str], url_to_fs(path if "://" in path else str(Path(path).expanduser())))
    except (ImportError, ValueError) as error:
        raise SourceError(f"source.path={path} cannot be read: {error}") from None


def open_raw(url: str) -> BinaryIO:
    """A file as it lies there, seekable."""
    if "://" not in url:
        return Path(url).open("rb")
    # Imported where a file is remote, as it takes long and every worker would pay for it.
    import fsspec

    return io.BufferedReader(fsspec.open(url, "rb").open(), _CHUNK)


def open_stream(url: str) -> BinaryIO:
    """A file's bytes from the start, decompressed by its suffix. A stream that ends too early raises EOFError."""
    raw = open_raw(url)
    if url.endswith(".gz"):
        return cast(BinaryIO, _GzipFile(raw))
    if url.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(raw), _CHUNK)
    return raw


def skip_to(stream: BinaryIO, url: str, position: int) -> None:
    """Go to a position of a stream just opened. A compressed one has to be read up to there."""
    if not url.endswith(COMPRESSIONS):
        stream.seek(position)
        return
    while position > 0:
        chunk = stream.read(min(position, _CHUNK))
        if not chunk:
            raise EOFError("it is shorter than before")
        position -= len(chunk)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what goes wrong in opening or reading a source file into SourceError."""
    unreachable: tuple[type[Exception], ...] = (OSError, *network_errors())
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"the source file {name} is gone; put it back or change source.path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise SourceError(
            f"the source file {name} is cut short or damaged ({error}); fetch it again, or leave it out of source.path"
        ) from None
    except unreachable as error:
        reason = str(error) or type(error).__name__
        raise SourceError(
            f"the source file {name} cannot be read ({reason}); run the same command again to go on"
        ) from None


def network_errors() -> tuple[type[Exception], ...]:
    """What the network library under huggingface_hub raises, which that has changed twice (requests, httpx, httpx2)."""
    if "huggingface_hub" not in sys.modules:
        return ()
    from huggingface_hub.utils import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    return (library.HTTPError,)


def strip_compression(name: str) -> str:
    """A file name without .gz or .zst."""
    return next((name.removesuffix(s) for s in COMPRESSIONS if name.endswith(s)), name)


def _in_folder(fs: Any, base: str, suffixes: Sequence[str], path: str) -> list[dict[str, Any]]:
    every = [f for f in fs.find(base, detail=True).values() if not _is_hidden(f["name"][len(base) :])]
    found = [f for f in every if strip_compression(f["name"].lower()).endswith(tuple(suffixes))]
    if not found:
        others = ", ".join(sorted(f["name"][len(base) + 1 :] for f in every)[:4]) or "no file at all"
        raise SourceError(
            f"the folder {path} has no file ending in {' or '.join(suffixes)} (it has {others}); "
            "give another folder, or a glob such as 'FOLDER/**/*.EXT' to take files of another ending"
        )
    return found


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))


def _source_file(fs: Any, entry: dict[str, Any], base: str) -> SourceFile:
    name: str = entry["name"]
    is_local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    unstrip: Callable[[str], str] = fs.unstrip_protocol
    relative = name[len(base) :].lstrip("/") if name.startswith(base) else name
    return SourceFile(relative, name if is_local else unstrip(name), int(entry["size"] or 0))


class _GzipFile(gzip.GzipFile):
    """A .gz file that closes what it reads from."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._source = raw

    def close(self) -> None:
        super().close()
        self._source.close()


class _ZstdFile(io.RawIOBase):
    """A .zst file of one or more frames. zstandard's own reader takes a file that is cut short for one that ends."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: Any = None
        self._pending = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            data = self._pending or self._raw.read(_CHUNK // 4)
            self._pending = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the compressed stream ends inside of a frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._output = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._pending, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
