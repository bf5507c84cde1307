"""Decides how a source file is opened, local or at an fsspec URL, compressed or not, and how its errors are reported."""

import gzip
import importlib
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from packtrain.errors import SourceError

COMPRESSIONS = (".gz", ".zst")
_CHUNK = 1 << 20


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path within it. Raises SourceError if its library is missing."""
    from fsspec.core import url_to_fs

    try:
        return cast(tuple[Any, str], url_to_fs(path if "://" in path else str(Path(path).expanduser())))
    except (ImportError, ValueError) as error:
        raise SourceError(f"source.path={path} cannot be read: {error}") from None


def open_raw(url: str) -> BinaryIO:
    """A file as it is stored, seekable."""
    if "://" not in url:
        return Path(url).open("rb")
    # Imported only for a remote file: it takes long, and every worker would pay for it.
    import fsspec

    return io.BufferedReader(fsspec.open(url, "rb").open(), _CHUNK)


def open_stream(url: str) -> BinaryIO:
    """A file's bytes from the start, decompressed according to its suffix. A stream that ends early raises EOFError."""
    raw = open_raw(url)
    if url.endswith(".gz"):
        return cast(BinaryIO, _GzipFile(raw))
    if url.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(raw), _CHUNK)
    return raw


def skip_to(stream: BinaryIO, url: str, position: int) -> None:
    """Move a newly opened stream to a position. A compressed stream has to be read up to it."""
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
    """Turn errors in opening or reading a source file into SourceError."""
    unreachable: tuple[type[Exception], ...] = (OSError, *network_errors())
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"the source file {name} is gone; put it back or change source.path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise SourceError(
            f"the source file {name} is cut short or damaged ({error}); fetch it again, or leave it out of source.path"
        ) from None
    except PermissionError as error:
        raise SourceError(
            f"the source file {name} cannot be read ({error}); allow this user to read it, or leave it out of source.path"
        ) from None
    except unreachable as error:
        reason = str(error) or type(error).__name__
        raise SourceError(
            f"the source file {name} cannot be read ({reason}); run the same command again to continue"
        ) from None


def network_errors() -> tuple[type[Exception], ...]:
    """Errors of the network library that huggingface_hub uses, which has changed twice (requests, httpx, httpx2)."""
    if "huggingface_hub" not in sys.modules:
        return ()
    from huggingface_hub.utils import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    return (library.HTTPError,)


def strip_compression(name: str) -> str:
    """A file name without .gz or .zst."""
    return next((name.removesuffix(s) for s in COMPRESSIONS if name.endswith(s)), name)


class _GzipFile(gzip.GzipFile):
    """A .gz file that also closes the file under it."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._source = raw

    def close(self) -> None:
        super().close()
        self._source.close()


class _ZstdFile(io.RawIOBase):
    """A .zst file of one or more frames. Unlike zstandard's own reader, it notices that a file is cut short."""

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
                    raise EOFError("the compressed stream ends within a frame")
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
