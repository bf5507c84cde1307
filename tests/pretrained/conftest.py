"""Small models as other programs write them: random weights, large enough that logits differ as much as trained ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.conftest import make_tokenizer

MakeFolder = Callable[..., Path]
SHAPE: dict[str, Any] = {
    "vocab_size": 325,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A byte-level tokenizer of 320 ids."""
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    make_tokenizer(folder)
    return folder


@pytest.fixture
def make_folder(tmp_path, tokenizer_folder) -> MakeFolder:
    """Writes a Hugging Face folder with transformers, and its tokenizer beside it."""

    def make(
        name: str = "hf",
        *,
        qwen3: bool = False,
        shard: str = "5GB",
        dtype: Any = torch.float32,
        tokenizer: Path = tokenizer_folder,
        **settings: Any,
    ) -> Path:
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        config, model = (Qwen3Config, Qwen3ForCausalLM) if qwen3 else (LlamaConfig, LlamaForCausalLM)
        folder = tmp_path / name
        model(config(**SHAPE | settings)).to(dtype).save_pretrained(folder, max_shard_size=shard)
        (folder / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
        return folder

    return make


def change_config(folder: Path, remove: tuple[str, ...] = (), **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in remove}))
