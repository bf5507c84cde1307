"""Decides what the embedded corpus is: the sources and the language reference of the running Python's standard library."""

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import xxhash

from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.delimited import read_text
from packtrain.prepare.sources.row import Row
from packtrain.prepare.sources.slices import FileScan, Limits, Part, SourceFile

# Tests and tools come with some distributions of Python and not with others; encodings are tables of code points, no text.
_LEFT_OUT = {
    *(
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "__pycache__",
        "encodings",
    ),
}
_TOPICS = "pydoc_data/topics.py"
_TOPIC = "topic:"


def stdlib_files() -> tuple[list[SourceFile], str]:
    """Every module and reference topic of the standard library, by name, and the version of Python they belong to."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(root): path for path in root.rglob("*.py")}
    files = [
        SourceFile(relative.as_posix(), str(path), path.stat().st_size)
        for relative, path in paths.items()
        if not _LEFT_OUT.intersection(relative.parts) and relative.as_posix() != _TOPICS
    ]
    if not files:
        raise SourceError(
            f"this Python keeps no sources in {root}; write source.kind=text and source.path=FOLDER instead"
        )
    topics = [SourceFile(f"{_TOPICS}/{name}", _TOPIC + name, len(text.encode())) for name, text in _topics().items()]
    return sorted(files + topics, key=lambda file: file.name), f"python {platform.python_version()}"


def scan_stdlib(file: SourceFile, _config: SourceConfig, _limit: Limits) -> FileScan:
    """The single part of a module or topic."""
    if file.url.startswith(_TOPIC):
        data = _topics()[file.url.removeprefix(_TOPIC)].encode()
    else:
        data = Path(file.url).read_bytes()
    return FileScan((Part(file.name, file.url, 0, 1, len(data), xxhash.xxh3_128(data).hexdigest()),))


def read_stdlib(part: Part, config: SourceConfig) -> Iterator[Row]:
    """The row of a module or topic."""
    if part.url.startswith(_TOPIC):
        yield Row(part.file, 0, None, _topics()[part.url.removeprefix(_TOPIC)])
    else:
        yield from read_text(part, config.model_copy(update={"separator": None}))


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return {}
    return topics
