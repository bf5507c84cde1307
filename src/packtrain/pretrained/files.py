"""Decides what a reader of models from elsewhere gives: the shape, the weights by name, and how text is read; nothing is trusted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from packtrain.config.model import ModelConfig
from packtrain.errors import ModelError, TokenizerError
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.init import build
from packtrain.model.llama import Llama
from packtrain.pretrained.conditions import Conditions

Kind = Literal["Hugging Face folder", "GGUF", "llama2.c"]
Shapes = Mapping[str, tuple[int, ...]]
# Older Llamas carry the rotary frequencies, which follow from the configuration.
_DERIVED = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk, whose every weight is there in the shape that `config` gives it. Made by a reader of this room."""

    path: Path
    """As it was given."""
    kind: Kind
    config: ModelConfig
    files: tuple[Path, ...]
    """What the weights and their description are read from."""
    read_stored: Callable[[str], Tensor] = field(repr=False)
    """A weight by its name, as it is stored."""
    read_conditions: Callable[[], Conditions] = field(repr=False)
    is_rounded: bool = False
    """Whether weights are stored in eight bits, from which a model is used and not trained."""

    def read(self, name: str) -> Tensor:
        """A weight in float32, on the CPU. Raises ModelError if it cannot be read or is not finite."""
        tensor = self.read_stored(name).to(torch.float32)
        if not tensor.isfinite().all():
            raise refuse(self.path, f"{name} has values that are infinite or not a number")
        return tensor

    def conditions(self) -> Conditions:
        """How the model reads text. Raises TokenizerError if there is no tokenizer, or one with more ids than the model."""
        found = self.read_conditions()
        if found.tokenizer.vocab_size > self.config.vocab_rows:
            raise TokenizerError(
                f"the tokenizer of {self.path} has {found.tokenizer.vocab_size} ids, and its model only "
                f"{self.config.vocab_rows}; put the model's own tokenizer there"
            )
        return found


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each weight of a model by name; a tied output projection is not listed."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_rows
    queries, keys = config.num_attention_heads * config.head_size, config.kv_heads * config.head_size
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm": (D,),
        "self_attn.q_proj": (queries, D),
        "self_attn.k_proj": (keys, D),
        "self_attn.v_proj": (keys, D),
        "self_attn.o_proj": (D, queries),
        "post_attention_layernorm": (D,),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    if config.qk_norm:
        block |= {"self_attn.q_norm": (config.head_size,), "self_attn.k_norm": (config.head_size,)}
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, D)
    for layer in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def check_shapes(path: Path, config: ModelConfig, found: Shapes, described_by: str) -> None:
    """Raises ModelError for the first weight that is missing, in excess or of another shape than `described_by` says.

    Nothing of the described size is allocated before this: a description may name any size.
    """
    present = {name: tuple(shape) for name, shape in found.items() if not name.endswith(_DERIVED)}
    if config.num_hidden_layers > len(present):
        raise refuse(
            path, f"it has {len(present)} weights, too few for the {config.num_hidden_layers} layers of {described_by}"
        )
    expected = expected_shapes(config)
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            raise refuse(path, f"{name} is missing, and {described_by} says that the model has it")
        if name not in expected:
            what = "has biases" if name.endswith(".bias") else f"has the weight {name}"
            raise refuse(path, f"it {what}, which no Llama of packtrain has")
        if expected[name] != present[name]:
            shapes = f"{list(present[name])}, and {described_by} says {list(expected[name])}"
            raise refuse(path, f"{name} has shape {shapes}")


def load_model(files: ModelFiles, *, device: str = "cpu") -> Llama:
    """The model, in evaluation mode and float32. Raises ModelError for a weight that cannot be read or is not finite."""
    model = build(files.config, seed=0, device="meta")
    state = {name: files.read(name).to(device) for name, _ in model.named_parameters()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if device == "cpu":
        use_cpu_kernels(model)
    return model.eval()


def refuse(path: Path, reason: str) -> ModelError:
    """The error for a model that cannot be opened, for a `reason` that is a clause."""
    return ModelError(
        f"{path} is not a model that packtrain can open: {reason}; give a run, or a Llama or Qwen3 in float32, float16 or bfloat16"
    )
