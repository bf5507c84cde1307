"""Decides what a GGUF file of a model has in it: how its weights are named, ordered and stored, and what is said of them."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from packtrain.config.model import ModelConfig
from packtrain.export import card
from packtrain.export.format import Checks, Subject
from packtrain.export.gguf.tokenizer import LlamaCppTokenizer, describe_tokenizer
from packtrain.export.huggingface import refuse_overflow
from packtrain.model.layers import stretch
from packtrain.pretrained.gguf_layout import ROPE_FACTORS, gguf_name, interleaved_heads
from packtrain.pretrained.rotary_rows import interleave_rows
from packtrain.pretrained.trained_on import TrainingDataset, find_training_datasets

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "q8_0": 34 / 32}
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""By our names, those of the gguf library."""
MODELFILE = "Modelfile"
_HUB = "https://huggingface.co"
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_QUANTIZATION_VERSION = 2
_BLOCK = 32
"""Weights of a row that share a scale in q8_0."""

_MODELFILE = """# ollama create NAME -f Modelfile
FROM ./{file}
# A base model: the prompt is continued as it is.
TEMPLATE \"\"\"{{{{ .Prompt }}}}\"\"\"
PARAMETER num_ctx {context}
PARAMETER temperature 0.8
PARAMETER top_p 0.95
"""
_USE = """With [llama.cpp](https://github.com/ggml-org/llama.cpp): `llama-server -m {file}`.

With [Ollama](https://ollama.com), by the `Modelfile` here: `ollama create mine -f Modelfile`, then `ollama run mine`.

In Python, with `pip install xllamacpp`:

```python
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = "{file}"
server = xllamacpp.Server(params)
print(server.handle_completions({{"prompt": "The", "max_tokens": 50}})["choices"][0]["text"])
```"""


def file_name(dtype: str) -> str:
    """Hubs and programs read the type of the weights from the name."""
    return f"model-{TYPES[dtype]}.gguf"


def write(subject: Subject, folder: Path) -> None:
    """Writes the GGUF file and Ollama's Modelfile. Raises ExportError for a tokenizer that llama.cpp has not, or an overflow."""
    import gguf

    config, dtype = subject.config, subject.choices.dtype
    file = folder / file_name(dtype)
    writer = gguf.GGUFWriter(file, "qwen3" if config.qk_norm else "llama")
    try:
        _describe_model(writer, subject)
        _describe_datasets(writer, find_training_datasets(subject.opened))
        _describe_tokenizer(writer, describe_tokenizer(subject.conditions, config.vocab_rows))
        for name, weight in _weights(subject):
            kind = storage_type(weight, dtype)
            shape, size = _stored_shape(weight, kind)
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # One at a time: a second copy of the model may not fit in memory.
        for name, weight in _weights(subject):
            _write_tensor(writer, store(name, weight, dtype))
    finally:
        writer.close()
    modelfile = _MODELFILE.format(file=file.name, context=subject.conditions.context_length)
    (folder / MODELFILE).write_text(modelfile, encoding="utf-8")


def describe(subject: Subject, checks: Checks, folder: Path) -> None:
    """Writes the model card."""
    card.write(subject, checks, folder, _USE.format(file=file_name(subject.choices.dtype)), library=None)


def storage_type(weight: Tensor, dtype: str) -> str:
    """The gguf library's name of the type that a weight is stored in.

    Vectors stay float32, as llama.cpp needs them. A row that is not whole blocks of q8_0 is float16.
    """
    if weight.dim() == 1:
        return "F32"
    return "F16" if dtype == "q8_0" and weight.shape[-1] % _BLOCK else TYPES[dtype]


def store(name: str, weight: Tensor, dtype: str) -> np.ndarray:
    """The bytes of a weight in the file. Raises ExportError if the type cannot represent it."""
    import gguf

    kind = gguf.GGMLQuantizationType[storage_type(weight, dtype)]
    with np.errstate(over="ignore", invalid="ignore"):
        stored: np.ndarray = gguf.quants.quantize(weight.numpy(), kind)
        refuse_overflow(name, torch.from_numpy(gguf.quants.dequantize(stored, kind)), dtype)
    return stored


def read_back(weight: Tensor, dtype: str) -> Tensor:
    """A weight as it reads back from the file, in float32."""
    import gguf

    kind = gguf.GGMLQuantizationType[storage_type(weight, dtype)]
    stored = gguf.quants.quantize(weight.contiguous().numpy(), kind)
    return torch.from_numpy(np.array(gguf.quants.dequantize(stored, kind))).view(weight.shape)


def rope_factors(config: ModelConfig) -> Tensor | None:
    """What each rotary frequency is divided by, float32 [K/2], if the model's are stretched as in Llama 3.1."""
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return None
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    frequencies = 1.0 / (config.rope_theta**exponents)
    return frequencies / stretch(frequencies, scaling)


def _weights(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the file by its name there, float32 on the CPU."""
    factors = rope_factors(subject.config)
    if factors is not None:
        yield ROPE_FACTORS, factors
    for name, parameter in subject.model.named_parameters():
        weight = parameter.detach().to("cpu", torch.float32)
        heads = interleaved_heads(name, subject.config)
        yield gguf_name(name), (weight if heads is None else interleave_rows(weight, heads)).contiguous()


def _write_tensor(writer: Any, stored: np.ndarray) -> None:
    try:
        writer.write_tensor_data(stored)
    except OSError as error:
        # NumPy says only how much it could write, not why.
        raise error if error.errno else OSError(errno.ENOSPC, str(error)) from None


def _stored_shape(weight: Tensor, kind: str) -> tuple[tuple[int, ...], int]:
    """The shape in bytes, and the number of bytes, of a weight as it is stored."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    shape = (*weight.shape[:-1], weight.shape[-1] // block * size)
    return shape, int(np.prod(shape))


def _describe_model(writer: Any, subject: Subject) -> None:
    config = subject.config
    kind = TYPES[subject.choices.dtype]
    writer.add_name(subject.opened.name)
    writer.add_file_type(_FILE_TYPES[kind])
    if kind == "Q8_0":
        writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_context_length(subject.conditions.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_vocab_size(config.vocab_rows)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)


def _describe_datasets(writer: Any, datasets: Sequence[TrainingDataset]) -> None:
    """What the model was trained on, by the keys that GGUF has for it. No folder: it means nothing on another machine."""
    if datasets:
        writer.add_dataset_count(len(datasets))
    for number, dataset in enumerate(datasets):
        writer.add_dataset_name(number, dataset.name or dataset.repo or str(dataset.source.get("kind", "dataset")))
        writer.add_dataset_version(number, dataset.hash)
        if dataset.repo is not None:
            writer.add_dataset_repo_url(number, f"{_HUB}/datasets/{dataset.repo}")


def _describe_tokenizer(writer: Any, tokenizer: LlamaCppTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores)
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_id),
        (writer.add_eos_token_id, tokenizer.eos_id),
        (writer.add_unk_token_id, tokenizer.unk_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(tokenizer.add_space_prefix)
