"""Decides whether a Hugging Face folder is read as transformers reads it, and what it cannot be is refused in a sentence."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from packtrain.errors import ModelError, TokenizerError
from packtrain.pretrained.open import open_model, read_files
from tests.pretrained.conftest import change_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def logits_of_transformers(folder, tokens_BT):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(tokens_BT).logits


def check_parity(folder):
    tokens_BT = torch.arange(2 * 60).reshape(2, 60) * 7 % 325
    opened = open_model(folder)
    with torch.no_grad():
        ours_BTV = opened.model(tokens_BT)
    torch.testing.assert_close(ours_BTV, logits_of_transformers(folder, tokens_BT), atol=2e-5, rtol=1e-5)
    assert opened.step is None and opened.run is None and opened.context_length == 64
    return opened


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": True},
        {"head_dim": 12, "num_key_value_heads": 1, "rope_parameters": LLAMA3 | {"rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, "rms_norm_eps": 1e-3},
        {"qwen3": True, "head_dim": 16, "tie_word_embeddings": True, "shard": "20KB"},
    ],
    ids=["tied", "llama3", "linear", "qwen3 in shards"],
)
def test_logits_are_those_of_transformers(make_folder, settings):
    folder = make_folder(**settings)
    assert (folder / "model.safetensors.index.json").exists() == ("shard" in settings)
    check_parity(folder)


def test_a_configuration_of_transformers_4_is_read_alike(make_folder):
    folder = make_folder(rope_parameters=LLAMA3 | {"rope_theta": 500.0}, dtype=torch.bfloat16)
    new = read_files(folder).config
    # As Llama 3.1's own config.json, and with the name that older files give the kind.
    old = {key: value for key, value in LLAMA3.items() if key != "rope_type"} | {"type": "llama3"}
    change_config(
        folder, ("rope_parameters", "dtype", "head_dim"), rope_theta=500.0, rope_scaling=old, torch_dtype="bfloat16"
    )
    assert read_files(folder).config == new.model_copy(update={"head_dim": None}) and new.head_dim == 8
    check_parity(folder)


def test_links_as_in_the_cache_of_the_hub_are_followed(make_folder, tmp_path):
    folder = make_folder()
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert open_model(linked).name == "linked"


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "its architecture is GPT2LMHeadModel, not LlamaForCausalLM or"),
        ({"model_type": "mistral"}, "but its model_type is mistral"),
        ({"mlp_bias": True}, "its mlp_bias is not that of a plain Llama"),
        ({"sliding_window": 32}, "its sliding_window is not"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "its layer_types is not"),
        ({"quantization_config": {"quant_method": "gptq"}}, "its quantization_config is not"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "its auto_map is not"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "stretched by yarn; packtrain has linear and llama3",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "have no low_freq_factor, which llama3 needs"),
        ({"rope_theta": 7.0}, "gives rope_theta as 10000.0 and as 7.0"),
        ({"num_hidden_layers": 10**12}, "too few for the 1000000000000 layers of config.json"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "has the weight model.layers.1.input_layernorm.weight"),
        ({"head_dim": 2 * 10**11}, "k_proj.weight has shape"),
        ({"vocab_size": None}, "config.json has no vocab_size"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight"),
    ],
)
def test_what_a_plain_llama_is_not_is_refused(make_folder, change, sentence):
    folder = make_folder()
    change_config(folder, **change)
    with pytest.raises(ModelError, match=sentence):
        open_model(folder)


def test_weights_that_do_not_fit_are_refused(make_folder, tmp_path):
    good = make_folder()

    def refuses(sentence, change, error=ModelError):
        folder = shutil.copytree(good, tmp_path / "bad", dirs_exist_ok=True)
        change(folder)
        with pytest.raises(error, match=sentence):
            open_model(folder)
        shutil.rmtree(folder)

    def put(name, tensor):
        return lambda folder: rewrite(folder, lambda tensors: tensors.update({name: tensor}))

    refuses("lm_head.weight is missing", lambda folder: rewrite(folder, lambda tensors: tensors.pop("lm_head.weight")))
    refuses("it has biases", put("model.layers.0.self_attn.q_proj.bias", torch.zeros(32)))
    refuses("stored as I8, and quantised weights", put("model.norm.weight", torch.zeros(32, dtype=torch.int8)))
    refuses("model.norm.weight has values that are infinite", put("model.norm.weight", torch.full((32,), torch.nan)))
    refuses("model.safetensors cannot be read", lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64))
    refuses("has no model.safetensors", lambda folder: (folder / "model.safetensors").unlink())
    refuses("has no tokenizer.json", lambda folder: (folder / "tokenizer.json").unlink(), TokenizerError)
    refuses("325 ids|320 ids, and its model only 319", lambda folder: shrink(folder, 319), TokenizerError)
    refuses(
        "pytorch_model.bin, a pickle, which can run any code",
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    )


def shrink(folder, rows):
    change_config(folder, vocab_size=rows)
    names = ("lm_head.weight", "model.embed_tokens.weight")
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name][:rows].clone() for name in names}))


def test_an_index_leads_only_to_files_of_its_own_folder(make_folder, tmp_path):
    folder = make_folder(shard="20KB")
    elsewhere = tmp_path / "elsewhere.safetensors"
    safetensors.torch.save_file({"model.norm.weight": torch.ones(32)}, elsewhere)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = f"../{elsewhere.name}"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"elsewhere.safetensors is missing"):
        open_model(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="has no weight_map"):
        open_model(folder)
