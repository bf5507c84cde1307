"""Decides what the embedded corpus is: the sources and the language reference of the running Python's standard library."""

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import xxhash

from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.slices import FileScan, Limits, Part, Row, SourceFile
from packtrain.prepare.sources.text import read_text

# Only some distributions of Python include tests and tools. Encodings are tables of code points, not text.
_EXCLUDED = frozenset(
    ["test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "site-packages", "dist-packages", "__pycache__"]
)
_TOPICS = "pydoc_data/topics.py"
_TOPIC = "topic:"


def find_stdlib_files() -> tuple[list[SourceFile], str]:
    """Every module and reference topic of the standard library, sorted by name, and the version of Python."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(root): path for path in root.rglob("*.py")}
    files = [
        SourceFile(relative.as_posix(), str(path), path.stat().st_size)
        for relative, path in paths.items()
        if not _EXCLUDED.intersection(relative.parts) and relative.as_posix() != _TOPICS
    ]
    if not files:
        raise SourceError(
            f"this Python has no library sources in {root}; write source.kind=text and source.path=FOLDER instead"
        )
    topics = [SourceFile(f"{_TOPICS}/{name}", _TOPIC + name, len(text.encode())) for name, text in _topics().items()]
    return sorted(files + topics, key=lambda file: file.name), f"python {platform.python_version()}"


def scan_stdlib(file: SourceFile, _config: SourceConfig, _limits: Limits) -> FileScan:
    """A module or topic as its single part."""
    if file.url.startswith(_TOPIC):
        data = _topics()[file.url.removeprefix(_TOPIC)].encode()
    else:
        data = Path(file.url).read_bytes()
    return FileScan((Part(file.name, file.url, 0, 1, len(data), xxhash.xxh3_128(data).hexdigest()),))


def read_stdlib(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Yield the row of a module or topic."""
    if part.url.startswith(_TOPIC):
        yield Row(part.file, 0, None, _topics()[part.url.removeprefix(_TOPIC)])
    else:
        yield from read_text(part, config)


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions omit it
        return {}
    return topics
