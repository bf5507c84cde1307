"""The Hugging Face folder: the same model and tokenizer when loaded as a user does, or a refusal that leaves nothing."""

import copy
import json
import os
import stat

import pytest
import safetensors.torch
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Qwen3ForCausalLM

from packtrain.errors import ExportError, TokenizerError
from packtrain.export import huggingface, verify
from packtrain.export.format import Subject
from packtrain.export.run import export_model, export_run
from packtrain.pretrained.conditions import conditions_of
from packtrain.pretrained.open import of_run, open_model
from tests.generate.conftest import make_llama_like

SHAPES = {
    "grouped, tied": {},
    "multi-head, separate output": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "QK-norm": {"qk_norm": True},
    "own head width and base": {"head_dim": 16, "rope_theta": 500_000.0},
    "linear scaling": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "max_position_embeddings": 128},
    "llama3 scaling": {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32},
        "max_position_embeddings": 256,
    },
}


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_the_reloaded_model_has_the_same_logits(make_run, tmp_path, changes):
    run = make_run(**changes)
    export_run(run, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs) is (Qwen3ForCausalLM if run.config.model.qk_norm else LlamaForCausalLM)
    tokens_BT = torch.randint(0, 300, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected_BTV, actual_BTV = run.model(tokens_BT), theirs(tokens_BT).logits
    assert expected_BTV.std() > 0.5
    torch.testing.assert_close(actual_BTV, expected_BTV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stores_the_rounded_weights_and_leaves_the_model(make_run, tmp_path, dtype):
    run = make_run()
    before = copy.deepcopy(run.model.state_dict())
    exported = export_run(run, tmp_path / "out", dtype=dtype)
    stored = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in stored, "a tied output is stored once"
    for name, tensor in stored.items():
        assert torch.equal(tensor, before[name].to(getattr(torch, dtype)))
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == getattr(torch, dtype)
    assert exported.checks.loss != exported.checks.loss_exported


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "tie_word_embeddings": False}], ids=["Llama", "Qwen3"])
def test_weights_above_the_size_of_a_file_are_several_and_an_index(make_run, tmp_path, changes):
    run = make_run(**changes)
    exported = export_run(run, tmp_path / "out", shard_size="20KB")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = read(tmp_path / "out", "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in run.model.parameters())
    assert set(index["weight_map"].values()) == set(files)
    assert exported.checks.num_greedy == 20
    again = open_model(tmp_path / "out")
    for name, parameter in run.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), parameter)


def test_files_have_the_permissions_that_the_umask_leaves(make_run, tmp_path):
    run = make_run()
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            export_run(run, tmp_path / "out", overwrite=True)
        finally:
            os.umask(before)
        assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {mode}


def test_a_model_from_elsewhere_is_exported_too(make_run, tmp_path):
    run = make_run()
    export_run(run, tmp_path / "first", dtype="float16")
    exported = export_model(open_model(tmp_path / "first"), tmp_path / "second")
    assert exported.step is None and exported.checks.max_logit_difference <= exported.checks.tolerance
    card = (tmp_path / "second" / "README.md").read_text()
    assert "# first" in card and "converted by packtrain" in card and "None" not in card


@pytest.mark.parametrize("size", ["5 apples", "", "0", "-3GB", "1e999GB"])
def test_a_size_that_is_none_is_refused(make_run, tmp_path, size):
    with pytest.raises(ExportError, match="is not a size of a file"):
        export_run(make_run(), tmp_path / "out", shard_size=size)


def test_weights_beyond_float16_are_refused(make_run, tmp_path):
    run = make_run()
    with torch.no_grad():
        run.model.model.norm.weight[0] = 1e5
    with pytest.raises(ExportError, match=r"model\.norm\.weight .*--dtype bfloat16"):
        export_run(run, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_configurations_have_the_names_of_transformers_4_and_5(make_run, tmp_path):
    run = make_run(rope_scaling={"rope_type": "linear", "factor": 2.0}, rope_theta=1234.0)
    export_run(run, tmp_path / "out", dtype="bfloat16")
    config = read(tmp_path / "out", "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1234.0
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert config["rope_scaling"].items() <= config["rope_parameters"].items()
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["max_position_embeddings"] == run.config.data.seq_len
    tokenizer = conditions_of(run).tokenizer
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    assert ids.items() <= config.items()
    assert read(tmp_path / "out", "generation_config.json") == ids
    settings = read(tmp_path / "out", "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (settings["bos_token"], settings["eos_token"]) == ("<s>", "</s>")


@pytest.mark.parametrize(
    ("controls", "adds_bos"),
    [(("<s>", "</s>"), True), (("<s>", "</s>"), False), (("<|endoftext|>",), True), (("</s>",), False), ((), False)],
)
def test_the_tokenizer_puts_bos_as_training_did_and_never_eos(make_run, tmp_path, controls, adds_bos):
    run = make_run(controls=controls, adds_bos=adds_bos)
    export_run(run, tmp_path / "out")
    ours, theirs = conditions_of(run).tokenizer, AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("The quick fox", " naïve  🙂\n"):
        expected = [ours.bos_id] * adds_bos + ours.encode(text)
        assert theirs(text)["input_ids"] == expected
        assert theirs.decode(expected, skip_special_tokens=True) == text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert len(theirs) == ours.vocab_size
    generation = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert (generation.bos_token_id, generation.eos_token_id) == (ours.bos_id, ours.eos_id)


def test_a_tokenizer_of_llamas_kind_keeps_its_spaces_and_bytes(make_run, tmp_path):
    tokenizer = make_llama_like(tmp_path / "llama-like")
    export_run(make_run(tokenizer=tokenizer), tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("the  fox", " 北🙂\n", "a"):
        assert theirs(text)["input_ids"] == [tokenizer.bos_id, *tokenizer.encode(text)]
        assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 takes such a shape")
def test_a_shape_that_transformers_refuses_is_refused_in_one_sentence(make_run, tmp_path):
    run = make_run(num_attention_heads=5, num_key_value_heads=5, head_dim=8)
    with pytest.raises(ExportError, match=r"transformers cannot load the export .*32.*5"):
        export_run(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made-tokenizer", "run"]


def test_control_tokens_in_text_are_text_on_request(make_run, tmp_path):
    run = make_run()
    export_run(run, tmp_path / "out")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "out"), conditions_of(run).tokenizer
    assert ours.eos_id in theirs("a</s>")["input_ids"]
    assert theirs("a</s>", split_special_tokens=True)["input_ids"] == [ours.bos_id, *ours.encode("a</s>")]


def test_real_text_of_the_validation_split_is_compared(trained_run, tmp_path):
    checks = export_run(trained_run, tmp_path / "out").checks
    assert checks.text == "validation split"
    assert checks.num_tokens == 128
    assert checks.max_logit_difference <= checks.tolerance


def test_a_changed_dataset_is_not_used_as_the_runs_own(trained_run, tmp_path, dataset):
    manifest = copy.deepcopy(trained_run.manifest)
    manifest["dataset"]["hash"] = "0" * 64
    changed = type(trained_run)(**{**vars(trained_run), "manifest": manifest})
    assert export_run(changed, tmp_path / "out", dataset=dataset).checks.text == "built-in prompts"


def tampered_weights(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 0.05
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def renamed_weight(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.another.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def changed(name, **values):
    def change(folder):
        (folder / name).write_text(json.dumps(read(folder, name) | values))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (tampered_weights, "logits differ"),
        (renamed_weight, "missing_keys"),
        (changed("config.json", rope_parameters=None, rope_theta=500.0), "logits differ"),
        (changed("config.json", rms_norm_eps=0.1), "logits differ"),
        (changed("config.json", vocab_size=300), "cannot load|mismatched|shape"),
        (changed("config.json", model_type="no-such-model"), "cannot load"),
        (changed("tokenizer.json", post_processor=None), "tokenizer gives"),
        (changed("special_tokens_map.json", eos_token="<s>"), "BOS and EOS"),
    ],
)
def test_a_folder_that_is_not_the_same_model_is_refused(make_run, tmp_path, damage, says):
    run = make_run()
    subject = Subject(of_run(run))
    folder = tmp_path / "written"
    folder.mkdir()
    huggingface.write(subject, folder)
    verify.check(subject, folder, None)
    damage(folder)
    with pytest.raises(ExportError, match=says):
        verify.check(subject, folder, None)


def test_another_tokenizer_in_the_run_is_refused(make_run, tmp_path):
    run = make_run()
    path = run.tokenizer_folder / "tokenizer.json"
    path.write_text(path.read_text().replace("\\u2581", "_") + "\n")
    with pytest.raises(TokenizerError, match="not the tokenizer that the run was trained with"):
        export_run(run, tmp_path / "out")


def test_unknown_formats_and_dtypes_are_named(make_run, tmp_path):
    run = make_run()
    with pytest.raises(
        ExportError, match=r"'ggml' is not an export format.*did you mean gguf.*one of hf, gguf, llama2c"
    ):
        export_run(run, tmp_path / "out", format="ggml")
    with pytest.raises(ExportError, match="'q8_0' is not an export dtype of a model in the format hf"):
        export_run(run, tmp_path / "out", dtype="Q8_0")
    with pytest.raises(ExportError, match="did you mean bfloat16"):
        export_run(run, tmp_path / "out", dtype="bfloat")
    assert not (tmp_path / "out").exists()


def test_the_card_has_the_runs_values_and_no_paths(make_run, tmp_path):
    run = make_run()
    run.layout.evaluation.write_text(
        json.dumps(
            {
                "step": 20,
                "model": {"loss": 5.0625, "perplexity": 158.0, "bits_per_byte": 2.375},
                "yardsticks": [{"name": "zlib -9", "bits_per_byte": 3.5}],
            }
        )
    )
    export_run(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "| loss, nats per token | 5.0625 |",
        "| bits per byte | 2.375 |",
        "| zlib -9 | 3.5 |",
        "| documents read | 123,456 |",
        "| dropped, too short | 7 |",
        "| tokens | 2,560 |",
        "| `data.seq_len` | 64 |",
        "| tokens compared | 256 |",
    ):
        assert line in card
    assert "None" not in card
    assert "secret" not in card
    assert str(tmp_path) not in card


def test_a_damaged_evaluation_is_left_out_of_the_card(make_run, tmp_path):
    run = make_run()
    run.layout.evaluation.write_text("[" * 100_000)
    export_run(run, tmp_path / "out")
    assert "| loss, nats per token | 5.125 |" in (tmp_path / "out" / "README.md").read_text()


def test_an_evaluation_of_another_step_is_not_the_models(make_run, tmp_path):
    run = make_run()
    run.layout.evaluation.write_text(json.dumps({"step": 10, "model": {"loss": 9.0}}))
    export_run(run, tmp_path / "out")
    assert "| loss, nats per token | 5.125 |" in (tmp_path / "out" / "README.md").read_text()
