"""Writes models in the formats of other programs, from a Hugging Face folder and by the rules of each format."""

import struct
from pathlib import Path

import numpy as np
import torch

from packtrain.pretrained.open import open_model

BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def permute(rows, heads):
    """As convert_hf_to_gguf.py and llama2.c's export.py do."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def parts_of(folder):
    opened = open_model(folder)
    weights = {name: tensor.detach().numpy() for name, tensor in opened.model.named_parameters()}
    return opened, opened.model.config, weights


def write_gguf(folder: Path, out: Path, dtype: str = "F32", *, add=lambda _: None, skip=(), tokenizer=True) -> Path:
    """The model in a Hugging Face folder as a GGUF, with its byte-level tokenizer."""
    import gguf

    opened, config, weights = parts_of(folder)
    arch = "qwen3" if config.qk_norm else "llama"
    writer = gguf.GGUFWriter(out, arch)
    values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "rope.dimension_count": config.head_size,
    }
    for key, value in values.items():
        if key not in skip:
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    elif scaling is not None:
        from packtrain.model.layers import Rotary

        plain = config.model_copy(update={"rope_scaling": None})
        divisors = np.array(Rotary(plain).frequencies) / np.array(Rotary(config).frequencies)
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    if tokenizer:
        add_byte_level(writer, opened.tokenizer, config.vocab_rows)
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(config.num_hidden_layers):
        names |= {f"blk.{layer}.{theirs}": f"model.layers.{layer}.{ours}" for theirs, ours in BLOCK.items()}
    for theirs, ours in names.items():
        if f"{ours}.weight" not in weights or theirs in skip:
            continue
        tensor = weights[f"{ours}.weight"]
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads}.get(ours.split(".")[-1])
        if heads and arch == "llama":
            tensor = permute(tensor, heads)
        is_plain = tensor.ndim == 1 or (dtype.startswith("Q") and tensor.shape[1] % 32)
        kind = gguf.GGMLQuantizationType["F32" if is_plain else dtype]
        writer.add_tensor(f"{theirs}.weight", gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    add(writer)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return out


def add_byte_level(writer, tokenizer, rows, pre="gpt-2"):
    spec = tokenizer.spec
    special = {token["id"] for token in tokenizer.added_tokens if token["special"]}
    names = {index: token for token, index in tokenizer.raw.get_vocab(with_added_tokens=True).items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([names.get(index, f"[PAD{index}]") for index in range(rows)])
    writer.add_token_types([3 if i in special else 1 if i in names else 5 for i in range(rows)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_add_bos_token(True)


def write_llama2c(folder: Path, out: Path, version: int = 0, group_size: int = 8) -> Path:
    """The model in a Hugging Face folder as llama2.c's export.py writes it."""
    _, config, weights = parts_of(folder)
    w = {name.removesuffix(".weight"): torch.from_numpy(np.ascontiguousarray(t)) for name, t in weights.items()}

    def layers(name, heads=None):
        found = [w[f"model.layers.{layer}.{name}"] for layer in range(config.num_hidden_layers)]
        return [torch.from_numpy(permute(t.numpy(), heads).copy()) for t in found] if heads else found

    is_tied = config.tie_word_embeddings
    numbers = [config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads]
    numbers += [config.kv_heads, config.vocab_rows, config.max_position_embeddings]
    norms = [layers("input_layernorm"), layers("post_attention_layernorm"), [w["model.norm"]]]
    attention = [layers("self_attn.q_proj", config.num_attention_heads), layers("self_attn.k_proj", config.kv_heads)]
    attention += [layers("self_attn.v_proj"), layers("self_attn.o_proj")]
    feed = [layers("mlp.gate_proj"), layers("mlp.down_proj"), layers("mlp.up_proj")]
    output = [] if is_tied else [w["lm_head"]]
    tokens = [w["model.embed_tokens"]]
    with out.open("wb") as file:
        if version == 0:
            numbers[5] *= 1 if is_tied else -1
            file.write(struct.pack("7i", *numbers))
            angles = torch.zeros(config.max_position_embeddings * config.head_size)
            parts = [tokens, norms[0], *attention, norms[1], *feed, norms[2], [angles], output]
            write_floats(file, parts)
            return out
        file.write(struct.pack("Ii7iB", 0x616B3432, version, *numbers, is_tied))
        file.write(struct.pack("i", group_size) if version == 2 else b"")
        file.write(b"\0" * (256 - file.tell()))
        matrices = [tokens, *attention, *feed, output]
        if version == 1:
            write_floats(file, [*norms, *matrices])
            return out
        write_floats(file, norms)
        for tensor in (tensor for part in matrices for tensor in part):
            groups = tensor.reshape(-1, group_size)
            scales = groups.abs().amax(dim=1) / 127
            file.write((groups / scales[:, None]).round().to(torch.int8).numpy().tobytes())
            file.write(scales.numpy().tobytes())
    return out


def write_floats(file, parts):
    for tensor in (tensor for part in parts for tensor in part):
        file.write(tensor.to(torch.float32).numpy().tobytes())
