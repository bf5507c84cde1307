"""Decides what the beginning of a GGUF file says: its values and tensors, each checked against the file's size before it is read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from packtrain.errors import ModelError
from packtrain.pretrained.files import refuse

_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
Q8_0 = "Q8_0"
"""A scale in float16, and 32 values as int8."""
# Two lengths and a type: the least that a key with its value takes, and about what a tensor's entry does.
_LEAST_BYTES = 13
_MOST_DIMS, _MOST_DEPTH = 4, 2
# By number: name, values of a block, and its bytes. The blocks of a row begin at its first value.
_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 8: (Q8_0, 32, 34), 28: ("F64", 1, 8), 30: ("BF16", 1, 2)}
_NOT_READ = {
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
}


class GGUFTensor(NamedTuple):
    """Where a tensor is in the file. `shape` is as torch has it, the slowest dimension first."""

    shape: tuple[int, ...]
    type: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """Values by key, and tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF does."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def read_header(path: Path) -> GGUFHeader:
    """The header of a little-endian GGUF, version 2 or 3. Raises ModelError for one that is cut short or not what it says."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data).read()
    except (struct.error, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise refuse(path, f"its GGUF header is damaged ({str(error)[:100]})") from None


class _Walk:
    """Reads one thing after another, none of which may reach beyond the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def read(self) -> GGUFHeader:
        magic, version, num_tensors, num_values = self._unpack("4sIQQ")
        if magic != b"GGUF" or version not in _VERSIONS:
            raise refuse(self._path, f"it is not a little-endian GGUF of version 2 or 3 (it says {version})")
        self._check_count(num_tensors + num_values, _LEAST_BYTES, "values and tensors")
        values: dict[str, Any] = {}
        for _ in range(num_values):
            key = self._string()
            if key in values:
                raise refuse(self._path, f"it has {key} twice")
            values[key] = self._value(self._unpack("I")[0])
        entries = [self._tensor() for _ in range(num_tensors)]
        alignment = values.get("general.alignment", 32)
        if not (isinstance(alignment, int) and 0 < alignment <= 1 << 20):
            raise refuse(self._path, f"its general.alignment is {str(alignment)[:20]}")
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in entries:
            if name in tensors:
                raise refuse(self._path, f"it has the tensor {name} twice")
            tensors[name] = self._place(name, shape, kind, start + offset)
        return GGUFHeader(values, tensors)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, (num_dims,) = self._string(), self._unpack("I")
        if num_dims > _MOST_DIMS:
            raise refuse(self._path, f"{name[:60]} has {num_dims} dimensions")
        dims = self._unpack(f"{num_dims}Q")
        kind, offset = self._unpack("IQ")
        return name, tuple(reversed(dims)), kind, offset

    def _place(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GGUFTensor:
        if kind not in _TYPES:
            stored = _NOT_READ.get(kind, f"type {kind}")
            raise refuse(self._path, f"{name[:60]} is stored as {stored}, and only F32, F16, BF16 and Q8_0 are read")
        label, block, size = _TYPES[kind]
        if block > 1 and (not shape or shape[-1] % block):
            raise refuse(
                self._path, f"{name[:60]} of shape {list(shape)} is stored as {label}, in blocks of {block} values"
            )
        num_bytes = size
        for length in shape:
            num_bytes *= length
        num_bytes //= block
        if offset + num_bytes > len(self._data):
            raise refuse(
                self._path, f"{name[:60]} of shape {list(shape)} ends behind the file's end, so the file was cut short"
            )
        return GGUFTensor(shape, label, offset, num_bytes)

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth >= _MOST_DEPTH:
            raise refuse(self._path, f"it has a value of the unknown type {kind}")
        inner, length = self._unpack("IQ")
        if inner in _SCALARS:
            self._check_count(length, struct.calcsize(_SCALARS[inner]), "values")
            return list(self._unpack(f"{length}{_SCALARS[inner]}"))
        self._check_count(length, 8, "values")
        return [self._value(inner, depth + 1) for _ in range(length)]

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        self._check_count(length, 1, "characters")
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8")

    def _unpack(self, kinds: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{kinds}", self._data, self._at)
        self._at += struct.calcsize(f"<{kinds}")
        return found

    def _check_count(self, count: int, size: int, of: str) -> None:
        if count * size > len(self._data) - self._at:
            raise ModelError(
                f"{self._path} is not a model that packtrain can open: its header says that {count:,} {of} follow, and the file "
                "ends before; it was cut short, or is damaged"
            )
