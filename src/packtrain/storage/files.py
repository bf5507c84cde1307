"""Decides how a source file is opened, local or at an fsspec URL, compressed or not, and how its errors are reported.

What a file is compressed with is seen in its first bytes, whatever its name. Decompression is in steps of bounded size.
"""

import gzip
import importlib
import io
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from packtrain.errors import SourceError

COMPRESSIONS = (".gz", ".zst")
# Endings of compressed files and archives that are not read.
FOREIGN_COMPRESSIONS = (".bz2", ".xz", ".lzma", ".lz4", ".zip", ".7z", ".rar", ".br", ".z", ".tar", ".tgz")
_CHUNK = 1 << 20
# A byte of zstd can stand for 32 KB.
_ZSTD_CHUNK = 1 << 11
# The longest window that zstd can write (--long=31). Its decoder needs that much memory, if the content is that long.
_ZSTD_WINDOW = 1 << 31
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UTF16 = "is in UTF-16; convert it (iconv -f UTF-16 -t UTF-8 OLD > NEW)"
_UTF32 = "is in UTF-32; convert it (iconv -f UTF-32 -t UTF-8 OLD > NEW)"
_PACKED = "is {}, which is not read; unpack it, or compress it as .gz or .zst"
# The first bytes of what cannot be read as text, none of which UTF-8 text begins with in practice.
_FOREIGN = {
    b"BZh": _PACKED.format("compressed with bzip2"),
    b"\xfd7zXZ\x00": _PACKED.format("compressed with xz"),
    b"\x04\x22\x4d\x18": _PACKED.format("compressed with lz4"),
    b"PK\x03\x04": _PACKED.format("a zip archive"),
    b"7z\xbc\xaf\x27\x1c": _PACKED.format("a 7z archive"),
    b"Rar!\x1a\x07": _PACKED.format("a rar archive"),
    _GZIP: "is compressed twice; decompress it once",
    _ZSTD: "is compressed twice; decompress it once",
    b"PAR1": "is parquet; write source.kind=parquet",
    b"\xff\xfe\x00\x00": _UTF32,
    b"\x00\x00\xfe\xff": _UTF32,
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
}


class _ForeignFormatError(Exception):
    """A file of a format that is not read; says which, and what to do."""


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
        path = Path(url)
        # To open a pipe would wait for its writer.
        if path.is_fifo():
            raise OSError("it is a pipe now")
        return path.open("rb")
    # Imported only for a remote file: it takes long, and every worker would pay for it.
    import fsspec

    return io.BufferedReader(fsspec.open(url, "rb").open(), _CHUNK)


def open_stream(url: str) -> BinaryIO:
    """A file's bytes from the start, decompressed. A stream that ends early raises EOFError.

    What is compressed cannot be sought in. For errors, use it within `reading`.
    """
    raw = open_raw(url)
    try:
        name = strip_query(url).lower()
        head = _peek(raw)
        if head.startswith(_GZIP) or (name.endswith(".gz") and head):
            stream: BinaryIO = io.BufferedReader(_GzipFile(raw), _CHUNK)
        elif head.startswith(_ZSTD) or (name.endswith(".zst") and head):
            stream = io.BufferedReader(_ZstdFile(raw), _CHUNK)
        else:
            stream = raw
        _refuse_foreign(_peek(stream))
    except BaseException:
        raw.close()
        raise
    return stream


def _peek(stream: BinaryIO) -> bytes:
    """The first bytes of a newly opened stream, which stay unread."""
    return cast(io.BufferedReader, stream).peek(16)[:16]


def _refuse_foreign(head: bytes) -> None:
    for magic, what in _FOREIGN.items():
        # "BZh" alone could be text.
        if head.startswith(magic) and (magic != b"BZh" or head[4:10] == b"1AY&SY"):
            raise _ForeignFormatError(what)
    if len(head) >= 4 and (
        (head[1:4:2] == b"\0\0" and all(head[0:4:2])) or (head[0:4:2] == b"\0\0" and all(head[1:4:2]))
    ):
        raise _ForeignFormatError(_UTF16)


def skip_to(stream: BinaryIO, position: int) -> None:
    """Move a newly opened stream to a position. A compressed stream has to be read up to it."""
    if stream.seekable():
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
    except _ForeignFormatError as error:
        raise SourceError(f"the source file {name} {error}, or leave it out of source.path") from None
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


def strip_query(url: str) -> str:
    """A URL without what follows its path; a local path as it is."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if "://" in url else url


def strip_compression(name: str) -> str:
    """A file name without .gz or .zst, in any case."""
    return next((name[: -len(s)] for s in COMPRESSIONS if name.lower().endswith(s)), name)


class _GzipFile(gzip.GzipFile):
    """A .gz file that also closes the file under it, and is read from its beginning to its end."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._source = raw

    def seekable(self) -> bool:
        return False

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
            data = self._pending or self._raw.read(_ZSTD_CHUNK)
            self._pending = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the compressed stream ends within a frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
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
