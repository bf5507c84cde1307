"""Decides the model's shape of a run that starts from weights that exist: theirs, unless a setting was stated to differ."""

import logging
from pathlib import Path
from typing import Any

from packtrain.config.load import Resolved
from packtrain.config.model import ModelConfig
from packtrain.config.run import RunConfig
from packtrain.config.words import show
from packtrain.errors import ConfigError
from packtrain.pretrained.open import read_files_to_train
from packtrain.runs.configuration import config_of, newest_config
from packtrain.train.predecessor import locate_run

# The weights do not depend on these.
_FREE = ("max_position_embeddings", "initializer_range", "embedding_range", "init")
_log = logging.getLogger("packtrain")


def take_shape(resolved: Resolved[RunConfig]) -> RunConfig:
    """The configuration with the shape of the weights that train.init_from or train.continue_from names.

    A shipped preset's shape gives way; what was typed, or stated in a file of the user's, must agree with the weights. Raises
    ConfigError naming both values if it does not, ModelError or RunError if there are no such weights.
    """
    config = resolved.config
    path = config.train.init_from or config.train.continue_from
    if path is None:
        return config
    own = _read_shape(config)
    stated = {
        key.removeprefix("model."): origin for key, origin in resolved.origins.items() if key.startswith("model.")
    }
    meant = {name for name, origin in stated.items() if not origin.startswith("preset ")}
    given, replaced = _values(config.model), []
    for name, value in _values(own).items():
        is_rows = name == "vocab_size" and config.train.extend_vocab
        if name in _FREE or is_rows or given[name] == value or getattr(config.model, name) is None:
            continue
        if name in meant:
            raise ConfigError(
                f"model.{name}={show(given[name])} (from {stated[name]}), and the weights in {path} have "
                f"model.{name}={show(value)}; leave model.{name} out"
            )
        if name in stated:
            replaced.append(f"model.{name}={show(value)}")
    if replaced:
        _log.info("from the weights in %s, not from the preset: %s", path, ", ".join(replaced))
    kept = {name: getattr(config.model, name) for name in _FREE if name in meant}
    if config.train.extend_vocab:
        kept["vocab_size"] = config.model.vocab_size if "vocab_size" in meant else None
    model = own.model_copy(update=kept)
    _check_length(config, model, path)
    return config.model_copy(update={"model": model})


def check_shape(config: RunConfig, own: ModelConfig, path: Path, *, is_extended: bool) -> None:
    """Raises ConfigError if the weights at `path`, of the shape `own`, are not of the run's shape."""
    given = _values(config.model)
    for name, value in _values(own).items():
        if name not in _FREE and given[name] != value and not (name == "vocab_size" and is_extended):
            raise ConfigError(
                f"model.{name}={show(given[name])}, and the weights in {path} have model.{name}={show(value)}; "
                f"write model.{name}={show(value)}"
            )


def _read_shape(config: RunConfig) -> ModelConfig:
    if config.train.init_from is not None:
        path = Path(config.train.init_from)
        if (path / "config.toml").is_file():
            raise ConfigError(f"{path} is a run; write --continue-from {path} to start a new run from its weights")
        return read_files_to_train(path).config
    layout, folder = locate_run(str(config.train.continue_from), "train.continue_from")
    return (newest_config(layout) if folder is None else config_of(layout, folder)).model


def _check_length(config: RunConfig, model: ModelConfig, path: str) -> None:
    limit, length = model.max_position_embeddings, config.data.seq_len
    if limit is not None and limit < length:
        raise ConfigError(
            f"data.seq_len={length} is longer than the context of {path}, {limit}; write data.seq_len={limit}, or "
            f"model.max_position_embeddings={length} to train it on longer rows"
        )


def _values(model: ModelConfig) -> dict[str, Any]:
    """The settings of a shape, with those that follow from others filled in."""
    values = {name: getattr(model, name) for name in type(model).model_fields}
    return values | {"num_key_value_heads": model.kv_heads, "head_dim": model.head_size}
