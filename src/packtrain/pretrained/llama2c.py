"""Decides how a file of llama2.c becomes a model of ours: legacy (v0), v1, or int8 (v2), whose weights are dequantised.

The formats: export.py of karpathy/llama2.c. Its header is seven numbers; v0 has nothing before them.
"""

import math
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from packtrain.config.model import ModelConfig
from packtrain.pretrained.conditions import Conditions
from packtrain.pretrained.files import ModelFiles, expected_shapes, refuse
from packtrain.pretrained.llama2c_layout import FREQUENCIES, HEADER_BYTES, MAGIC, interleaved_heads_of, weight_order
from packtrain.pretrained.llama2c_tokenizer import read_tokenizer_beside
from packtrain.pretrained.rotary_rows import separate_rows

# More than any model of this format has; keeps a header of noise from being multiplied out.
_MOST, _MOST_LAYERS = 1 << 24, 4096


class Llama2cHeader(NamedTuple):
    """What a file says of itself. `group_size` is 0 without int8."""

    version: int
    dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    seq_len: int
    is_tied: bool
    group_size: int
    num_bytes: int
    """Of the header."""


class Llama2cTensor(NamedTuple):
    """Where a weight is: its float32 or int8 values, and behind them, with int8, a scale for each group."""

    shape: tuple[int, ...]
    offset: int
    is_int8: bool


def read_file(path: Path) -> ModelFiles:
    """The model in a .bin file of llama2.c. Raises ModelError if its size is not exactly what its header makes it."""
    header = read_header(path)
    try:
        config = shape_of(header)
    except ValidationError as failure:
        raise refuse(path, str(failure.errors()[0]["msg"])) from None
    tensors, num_bytes = place_tensors(header)
    size = path.stat().st_size
    if num_bytes != size:
        raise refuse(
            path, f"its header makes {num_bytes:,} bytes, and it has {size:,}: it was cut short, or is another file"
        )

    def read(name: str) -> Tensor:
        tensor = read_tensor(path, tensors[name], header.group_size)
        heads = interleaved_heads_of(name, config)
        return tensor if heads is None else separate_rows(tensor, heads)

    def read_conditions() -> Conditions:
        # run.c begins each text with BOS.
        return Conditions(read_tokenizer_beside(path, header.vocab_size), True, header.seq_len)

    return ModelFiles(path, "llama2.c", config, (path,), read, read_conditions)


def is_llama2c(path: Path) -> bool:
    """Whether a file may be one of llama2.c. The legacy format has no mark of its own, and nothing but its usual name."""
    with path.open("rb") as file:
        start = file.read(4)
    return path.suffix == ".bin" or start == struct.pack("<I", MAGIC)


def is_pickle(path: Path) -> bool:
    """Whether a file begins as torch.save writes one: a zip archive, or a pickle."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05")


def read_header(path: Path) -> Llama2cHeader:
    """The header of a file. Raises ModelError for one of another format or version, or with numbers that no model has."""
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if len(start) < 28:
        raise refuse(path, f"it has {len(start)} bytes, too few for a file of llama2.c")
    magic, version = struct.unpack_from("<Ii", start)
    if magic != MAGIC:
        dim, hidden, layers, heads, kv_heads, rows, length = struct.unpack_from("<7i", start)
        header = Llama2cHeader(0, dim, hidden, layers, heads, kv_heads, abs(rows), length, rows > 0, 0, 28)
    elif version not in (1, 2) or len(start) < HEADER_BYTES:
        raise refuse(path, f"it is a llama2.c file of version {version}, and packtrain knows legacy, 1 and 2")
    else:
        dim, hidden, layers, heads, kv_heads, rows, length, shared = struct.unpack_from("<7iB", start, 8)
        group_size = struct.unpack_from("<i", start, 37)[0] if version == 2 else 0
        header = Llama2cHeader(
            version, dim, hidden, layers, heads, kv_heads, rows, length, shared != 0, group_size, HEADER_BYTES
        )
        if version == 2 and group_size < 1:
            raise refuse(path, f"its header has a group size of {group_size}")
    for name in ("dim", "hidden_dim", "num_layers", "num_heads", "num_kv_heads", "vocab_size", "seq_len"):
        if not 0 < getattr(header, name) < _MOST:
            raise refuse(path, f"its header has {name} {getattr(header, name)}, so it is not a file of llama2.c")
    if header.dim % header.num_heads or header.num_layers > _MOST_LAYERS:
        raise refuse(
            path, f"its header has {header.num_heads} heads and dim {header.dim}, so it is not a file of llama2.c"
        )
    return header


def shape_of(header: Llama2cHeader) -> ModelConfig:
    """The shape of the model. Raises ValueError for one that no Llama has."""
    return ModelConfig(
        hidden_size=header.dim,
        num_hidden_layers=header.num_layers,
        num_attention_heads=header.num_heads,
        num_key_value_heads=header.num_kv_heads,
        intermediate_size=header.hidden_dim,
        vocab_size=header.vocab_size,
        max_position_embeddings=header.seq_len,
        tie_word_embeddings=header.is_tied,
        rms_norm_eps=1e-5,
        init="llama2c",
    )


def place_tensors(header: Llama2cHeader) -> tuple[dict[str, Llama2cTensor], int]:
    """Where each weight is, by our name, and the bytes of a whole file."""
    config = shape_of(header)
    shapes = expected_shapes(config)
    tensors, at = {}, header.num_bytes
    for name in weight_order(config, header.version):
        if name == FREQUENCIES:
            # They follow from the shape.
            at += 2 * 4 * header.seq_len * (config.head_size // 2)
            continue
        is_int8 = header.version == 2 and "norm" not in name
        tensors[name] = Llama2cTensor(shapes[name], at, is_int8)
        at += _num_bytes(shapes[name], is_int8, header.group_size)
    return tensors, at


def read_tensor(path: Path, stored: Llama2cTensor, group_size: int) -> Tensor:
    """A weight in float32, as it is stored. int8 values are multiplied by the scale of their group."""
    count = math.prod(stored.shape)
    with path.open("rb") as file:
        file.seek(stored.offset)
        data = bytearray(file.read(_num_bytes(stored.shape, stored.is_int8, group_size)))
    if len(data) != _num_bytes(stored.shape, stored.is_int8, group_size):
        raise refuse(path, "it has become shorter since it was opened")
    if not stored.is_int8:
        return torch.frombuffer(data, dtype=torch.float32).reshape(stored.shape)
    values = torch.frombuffer(data, dtype=torch.int8, count=count).view(-1, group_size)
    # A copy, because the scales need not lie at a multiple of their size.
    scales = torch.frombuffer(bytearray(data[count:]), dtype=torch.float32)
    return (values.float() * scales[:, None]).reshape(stored.shape)


def _num_bytes(shape: tuple[int, ...], is_int8: bool, group_size: int) -> int:
    count = math.prod(shape)
    return count + 4 * (count // group_size) if is_int8 else 4 * count
