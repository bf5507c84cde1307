"""llama2.c's files: a reader that knows nothing of our model computes the same, and run.c finds what it needs at its ids."""

import json
import struct

import numpy as np
import pytest
import torch

from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.errors import ExportError
from packtrain.export.llama2c import write
from packtrain.export.llama2c.encoder import read_vocabulary
from packtrain.export.llama2c.numbering import number_tokens
from packtrain.export.llama2c.reader import read_model
from packtrain.export.run import export_run
from packtrain.pretrained.conditions import conditions_of
from tests.corpora import SHARED
from tests.export.conftest import make_tokenizer
from tests.generate.conftest import make_llama_like

REAL = SHARED / "yardsticks" / "llama2c"


@pytest.mark.parametrize("make", [make_tokenizer, make_llama_like], ids=["byte-level", "sentencepiece"])
@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {}),
        ({"version": 1}, {"tie_word_embeddings": False, "num_key_value_heads": 1}),
        ({"dtype": "int8", "group_size": 16}, {"tie_word_embeddings": False}),
    ],
    ids=["version 0", "version 1", "version 2"],
)
def test_the_reader_computes_the_same(make_run, tmp_path, make, options, changes):
    run = make_run(tokenizer=make(tmp_path / "tokenizer"), **changes)
    exported = export_run(run, tmp_path / "out", format="llama2c", **options)
    checks = exported.checks
    assert checks.max_logit_difference <= checks.tolerance < 1e-3
    assert checks.num_greedy == (None if exported.choices.version == 2 else 20)
    assert (abs(checks.loss - checks.loss_exported) < 1e-5) is (exported.choices.version < 2)
    # From the description of the format: magic, version, sizes, whether the output is shared, group size.
    data = (tmp_path / "out" / "model.bin").read_bytes()
    sizes = (32, 48, 2, 4, changes.get("num_key_value_heads", 2), run.config.model.vocab_rows, 64)
    if exported.choices.version == 0:
        assert struct.unpack_from("<7i", data) == sizes
    else:
        assert struct.unpack_from("<Ii7iB", data) == (0x616B3432, exported.choices.version, *sizes, 0)
    if exported.choices.version == 2:
        assert struct.unpack_from("<i", data, 37) == (16,)


def test_run_c_begins_with_bos_and_finds_the_bytes(make_run, tmp_path):
    run = make_run()
    checks = export_run(run, tmp_path / "out", format="llama2c").checks
    ours, again = conditions_of(run).tokenizer, load_tokenizer(tmp_path / "out")
    assert (ours.bos_id, ours.eos_id) == (0, 1) and (again.bos_id, again.eos_id) == (1, 2)
    vocabulary = read_vocabulary(tmp_path / "out" / "tokenizer.bin", run.config.model.vocab_rows)
    assert vocabulary.texts[3 : 3 + 256] == [bytes([byte]) for byte in range(256)]
    assert vocabulary.texts[1:3] == [b"\n<s>\n", b"\n</s>\n"]
    order = number_tokens(ours, run.config.model.vocab_rows)
    for text in ("The quick fox", "Zürich 🙂", " naïve\n"):
        assert again.encode(text) == [order.new_ids[i] for i in ours.encode(text)]
        assert again.decode(again.encode(text)) == text
    assert any("puts a space before a prompt" in remark for remark in checks.remarks)
    assert any("other ids" in remark for remark in checks.remarks)


def test_a_vocabulary_like_llamas_keeps_its_ids_and_needs_no_remark(make_run, tmp_path):
    tokenizer = make_llama_like(tmp_path / "tok")
    run = make_run(tokenizer=tokenizer)
    checks = export_run(run, tmp_path / "out", format="llama2c").checks
    assert checks.remarks == () and number_tokens(tokenizer, run.config.model.vocab_rows).is_ours
    vocabulary = read_vocabulary(tmp_path / "out" / "tokenizer.bin", run.config.model.vocab_rows)
    for text in ("the  fox", "é 北🙂\n", "a"):
        assert vocabulary.encode(text) == tokenizer.encode(text)
        assert vocabulary.decode(tokenizer.encode(text)).decode() == text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"qk_norm": True}, "norms on queries and keys"),
        ({"rope_theta": 500.0}, "rope_theta=500, and run.c computes with 10000"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06, and run.c computes with 1e-05"),
        ({"head_dim": 16}, "heads of width 16"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "stretched rotary"),
    ],
)
def test_what_run_c_cannot_compute_is_refused(make_run, tmp_path, changes, says):
    with pytest.raises(ExportError, match=f"no place for .*{says}.*write --format hf or gguf"):
        export_run(make_run(**changes), tmp_path / "out", format="llama2c")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"version": 3}, "--version 3 is not one of llama2.c's"),
        ({"version": 0, "dtype": "int8"}, "has weights of type float32, not int8"),
        ({"version": 2, "dtype": "f32"}, "has weights of type int8, not float32"),
        ({"dtype": "f16"}, "'float16' is not an export dtype of a model in the format llama2c"),
        ({"group_size": 32}, "applies only to --dtype int8"),
        ({"dtype": "int8", "group_size": 0}, "a number above 0"),
        ({"dtype": "int8", "group_size": 7}, "are not multiples of --group-size 7"),
        ({"shard_size": "1GB"}, "--shard-size applies only to --format hf"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_run, tmp_path, options, says):
    with pytest.raises(ExportError, match=says):
        export_run(make_run(), tmp_path / "out", format="llama2c", **options)
    assert not (tmp_path / "out").exists()


def test_the_group_size_is_halved_until_rows_are_whole_groups(make_run):
    config = make_run().config.model
    assert (config.hidden_size, config.intermediate_size) == (32, 48)
    assert write.group_size(config, 64) == 16
    steps, scales = write.quantize(torch.tensor([[1.0, -2.0, 0.0, 0.0]]), 2)
    assert steps.tolist() == [[64, -127], [0, 0]] and scales.tolist() == [np.float32(2 / 127), 0.0]


@pytest.mark.parametrize("version", [0, 2])
def test_a_file_that_was_cut_short_is_not_read(make_run, tmp_path, version):
    export_run(make_run(), tmp_path / "out", format="llama2c", version=version)
    file = tmp_path / "out" / "model.bin"
    for size in (0, 10, 200, file.stat().st_size - 1):
        (tmp_path / "cut.bin").write_bytes(file.read_bytes()[:size])
        with pytest.raises(ValueError, match="it has"):
            read_model(tmp_path / "cut.bin")
    with pytest.raises(ValueError, match="it ends after"):
        read_vocabulary(tmp_path / "out" / "tokenizer.bin", 10_000)


@pytest.mark.parametrize("name", ["interleave_rows", "refuse_overflow"])
def test_another_model_is_not_published(make_run, tmp_path, monkeypatch, name):
    run = make_run()
    if name == "interleave_rows":
        monkeypatch.setattr(write, name, lambda weight, _heads: weight)
    else:
        with torch.no_grad():
            run.model.model.norm.weight[0] = float("nan")
    with pytest.raises(ExportError, match=r"logits differ .*position 1 of row 0|norm\.weight has values"):
        export_run(run, tmp_path / "out", format="llama2c")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_files_have_the_same_ids_as_the_model(make_run, tmp_path):
    export_run(make_run(), tmp_path / "out", format="llama2c")
    spec = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert {token["content"]: token["id"] for token in spec["added_tokens"]} == {"<s>": 1, "</s>": 2}
    assert spec["post_processor"]["special_tokens"]["<s>"]["ids"] == [1]


@pytest.mark.skipif(not REAL.is_dir(), reason="the file of another trainer is not here")
def test_a_real_file_with_grouped_heads_continues_a_story():
    model = read_model(REAL / "model5000.bin")
    assert (model.num_heads, model.num_kv_heads, model.weights["wq"].shape) == (8, 4, (5, 128, 128))
    [new] = model.continue_greedily([[1]], 30)
    logits_BTV = model.logits(np.array([[1, *new]]))
    chosen = np.exp(logits_BTV[0, :-1].max(-1) - np.log(np.exp(logits_BTV[0, :-1]).sum(-1)))
    assert chosen.mean() > 0.5, "a model that is read in the wrong order is never this sure"


def test_an_epsilon_that_a_float32_file_gave_is_run_cs(make_run, tmp_path):
    run = make_run(rms_norm_eps=float(np.float32(1e-5)))
    assert run.config.model.rms_norm_eps != 1e-5
    checks = export_run(run, tmp_path / "out", format="llama2c").checks
    assert checks.max_logit_difference <= checks.tolerance
