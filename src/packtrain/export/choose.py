"""Decides which options a format takes, what they mean together, and what is written if they are not given."""

from typing import Any, TypedDict

from packtrain.errors import ExportError
from packtrain.export.format import Choices, check_choice, name_dtype
from packtrain.export.formats import FORMATS

_OF_FORMAT = {"shard_size": "hf", "version": "llama2c", "group_size": "llama2c"}
_UNITS = {"KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "": 1}
_VERSIONS = (0, 1, 2)
_LEAST_SHARD = 1000


class ExportOptions(TypedDict, total=False):
    """How the weights are written; None is the format's default."""

    dtype: str | None
    """float32 (the default), float16 or bfloat16; gguf also q8_0; llama2c float32 or int8."""
    shard_size: str | int | None
    """hf: the most bytes of weights in a file, such as 5GB (the default)."""
    version: int | None
    """llama2c: 0 (the default, which run.c reads), 1, or 2 (int8, which runq.c reads)."""
    group_size: int | None
    """llama2c, int8: how many weights share a scale; 64 unless the model's sizes need less."""


def choose(format: str, options: ExportOptions) -> Choices:
    """What the options mean for a format that is known. Raises ExportError for one that does not fit."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for name, owner in _OF_FORMAT.items():
        if name in given and owner != format:
            raise ExportError(f"--{name.replace('_', '-')} applies only to --format {owner}; leave it out")
    dtype, version = given.get("dtype"), given.get("version")
    if version is not None and version not in _VERSIONS:
        raise ExportError(f"--version {version} is not one of llama2.c's; write --version 0, 1 or 2")
    dtype = name_dtype(dtype) if dtype is not None else "int8" if version == 2 else "float32"
    check_choice("dtype", dtype, FORMATS[format].dtypes, f"model in the format {format}")
    if version is None:
        version = 2 if dtype == "int8" else 0
    if (dtype == "int8") != (version == 2):
        raise ExportError(
            f"--version {version} of llama2.c's format has weights of type {'int8' if version == 2 else 'float32'}, not {dtype}; "
            f"leave out --version or --dtype"
        )
    group_size = given.get("group_size", Choices.group_size)
    if "group_size" in given and (dtype != "int8" or group_size < 1):
        raise ExportError("--group-size is a number above 0, and applies only to --dtype int8; leave it out")
    shard_bytes = _read_size(given["shard_size"]) if "shard_size" in given else Choices.shard_bytes
    return Choices(dtype, shard_bytes, version, group_size)


def _read_size(given: str | int) -> int:
    text = str(given).strip().upper()
    number = text.rstrip("KMGIB")
    try:
        size = int(float(number) * _UNITS[text[len(number) :].strip()])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < _LEAST_SHARD:
        raise ExportError(
            f"--shard-size {given} is not a size of a file; write one of 1KB or more, such as 5GB or 500MB"
        )
    return size
