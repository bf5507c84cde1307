"""GGUF: llama.cpp computes the model's log-probabilities, greedy text and token ids from the file, or nothing is published."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from packtrain.errors import ExportError
from packtrain.export.formats import FORMATS
from packtrain.export.gguf import llamacpp, write
from packtrain.export.gguf.tokenizer import describe_tokenizer
from packtrain.export.run import export_model, export_run
from packtrain.export.scores import find_unlisted_merge
from packtrain.pretrained.conditions import Conditions
from packtrain.pretrained.gguf_layout import PRE_TOKENIZERS
from packtrain.pretrained.open import open_model
from packtrain.pretrained.rotary_rows import interleave_rows, separate_rows
from packtrain.pretrained.trained_on import find_training_datasets
from tests.export.conftest import TEXT, make_tokenizer
from tests.generate.conftest import make_llama_like, save

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}
SHAPES = {
    "grouped, tied, byte-level": ({}, make_tokenizer, {}),
    "separate output, sentencepiece": ({"num_key_value_heads": 4, "tie_word_embeddings": False}, make_llama_like, {}),
    "QK-norm, own head width, linear": (
        {"qk_norm": True, "head_dim": 16, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        make_tokenizer,
        {"adds_bos": False},
    ),
    "llama3 scaling": (
        {"rope_scaling": LLAMA3, "max_position_embeddings": 256, "rope_theta": 500.0},
        make_tokenizer,
        {},
    ),
}


def read(folder):
    [file] = folder.glob("*.gguf")
    return gguf.GGUFReader(file)


@pytest.mark.parametrize(("changes", "make", "others"), SHAPES.values(), ids=SHAPES)
@pytest.mark.slow
def test_llama_cpp_computes_the_same(make_run, tmp_path, capfd, changes, make, others):
    run = make_run(tokenizer=make(tmp_path / "tokenizer"), **others, **changes)
    checks = export_run(run, tmp_path / "out", format="gguf").checks
    assert checks.reader.startswith("llama.cpp")
    assert checks.max_logit_difference <= checks.tolerance < 0.01
    assert checks.num_greedy == 20 and checks.num_tokens == 64 and checks.num_strings >= 18
    assert abs(checks.loss - checks.loss_exported) < 1e-4
    shown = capfd.readouterr()
    ours = [line for line in shown.err.splitlines() if line.startswith("warning: ")]
    assert (shown.out, shown.err.splitlines()) == ("", ours), "llama.cpp's own lines are nobody's business"
    file = read(tmp_path / "out")
    names = {tensor.name for tensor in file.tensors}
    assert ("output.weight" in names) is not run.config.model.tie_word_embeddings
    assert file.get_field("general.architecture").contents() == ("qwen3" if run.config.model.qk_norm else "llama")
    assert file.get_field("tokenizer.ggml.add_bos_token").contents() is others.get("adds_bos", True)


@pytest.mark.parametrize(("dtype", "kind"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")])
def test_smaller_types_are_stored_rounded_and_vectors_stay_float32(make_run, tmp_path, dtype, kind):
    run = make_run(tie_word_embeddings=False)
    exported = export_run(run, tmp_path / "out", format="gguf", dtype=dtype)
    assert exported.checks.num_greedy is None and exported.checks.loss != exported.checks.loss_exported
    file = read(tmp_path / "out")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    assert kinds["output_norm.weight"] == "F32" and kinds["token_embd.weight"] == kind
    # 48 is not a multiple of q8_0's block of 32.
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if dtype == "q8_0" else kind)
    [up] = [tensor for tensor in file.tensors if tensor.name == "blk.1.ffn_up.weight"]
    ours = run.model.get_parameter("model.layers.1.mlp.up_proj.weight").detach()
    stored = gguf.quants.dequantize(up.data, up.tensor_type).reshape(ours.shape)
    np.testing.assert_array_equal(stored, write.read_back(ours, exported.choices.dtype).numpy())
    scale = ours.abs().max() * {"F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254}[kind] * 1.01
    assert 0 < np.abs(stored - ours.numpy()).max() <= scale


def test_the_modelfile_and_the_card_name_the_file(make_run, tmp_path):
    export_run(make_run(), tmp_path / "out", format="gguf", dtype="f16")
    modelfile = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert "FROM ./model-F16.gguf" in modelfile
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile and "PARAMETER num_ctx 64" in modelfile
    card = (tmp_path / "out" / "README.md").read_text()
    assert "llama-server -m model-F16.gguf" in card and "library_name" not in card
    assert "| largest difference between log-probabilities |" in card and "| read back by | llama.cpp" in card


def test_the_file_and_the_card_name_the_datasets_but_no_folder(make_run, tmp_path):
    run = make_run()
    hub = {"kind": "hf", "repo": "me/texts", "revision": "main", "filter": "secret"}
    parts = [
        {
            "name": "web",
            "weight": 3,
            "max_epochs": None,
            "folder": "/home/me/web",
            "hash": "a" * 64,
            "recipe": {"source": hub},
        },
        {"name": "code", "weight": 1, "max_epochs": 2.0, "folder": "/home/me/code", "hash": "b" * 64},
    ]
    manifest = json.loads(run.layout.manifest.read_text())
    manifest["dataset"] = {key: manifest["dataset"][key] for key in ("hash", "tokenizer")} | {"sources": parts}
    run.layout.manifest.write_text(json.dumps(manifest))
    export_model(open_model(run.layout.folder), tmp_path / "out", format="gguf")
    file, data = read(tmp_path / "out"), (tmp_path / "out" / "model-F32.gguf").read_bytes()
    said = {key: value.contents() for key, value in file.fields.items() if key.startswith("general.dataset")}
    assert said == {
        "general.dataset.count": 2,
        "general.dataset.0.name": "web",
        "general.dataset.0.version": "a" * 64,
        "general.dataset.0.repo_url": "https://huggingface.co/datasets/me/texts",
        "general.dataset.1.name": "code",
        "general.dataset.1.version": "b" * 64,
    }
    assert b"/home/me" not in data
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["datasets"] == ["me/texts"] and "/home/me" not in card
    named = find_training_datasets(open_model(tmp_path / "out"))
    assert [part.folder for part in named] == ["/home/me/web", "/home/me/code"] and named[1].max_epochs == 2
    assert named[0].source == {"kind": "hf", "repo": "me/texts", "revision": "main"}
    moved = (tmp_path / "out" / "model-F32.gguf").rename(tmp_path / "alone.gguf")
    alone = find_training_datasets(open_model(moved))
    assert [(part.folder, part.hash) for part in alone] == [(None, "a" * 64), (None, "b" * 64)]


def test_a_hugging_face_folder_becomes_a_gguf(make_run, tmp_path):
    export_run(make_run(qk_norm=True), tmp_path / "hf")
    exported = export_model(open_model(tmp_path / "hf"), tmp_path / "out", format="gguf")
    assert exported.checks.num_greedy == 20 and exported.step is None


def unpermuted(monkeypatch):
    monkeypatch.setattr(write, "interleave_rows", lambda weight, _heads: weight)


def other_base(monkeypatch):
    add = gguf.GGUFWriter.add_rope_freq_base
    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_freq_base", lambda self, _value: add(self, 500.0))


def other_eps(monkeypatch):
    add = gguf.GGUFWriter.add_layer_norm_rms_eps
    monkeypatch.setattr(gguf.GGUFWriter, "add_layer_norm_rms_eps", lambda self, _value: add(self, 0.1))


def no_bos(monkeypatch):
    add = gguf.GGUFWriter.add_add_bos_token
    monkeypatch.setattr(gguf.GGUFWriter, "add_add_bos_token", lambda self, _value: add(self, False))


def reversed_merges(monkeypatch):
    add = gguf.GGUFWriter.add_token_merges
    monkeypatch.setattr(gguf.GGUFWriter, "add_token_merges", lambda self, merges: add(self, merges[::-1]))


def cut_short(monkeypatch):
    whole = write.write

    def half(subject, folder):
        whole(subject, folder)
        file = folder / write.file_name(subject.choices.dtype)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    monkeypatch.setitem(FORMATS, "gguf", dataclasses.replace(FORMATS["gguf"], write=half))


@pytest.mark.parametrize(
    ("dtype", "damage", "says"),
    [
        (
            "float32",
            unpermuted,
            r"log-probabilities differ.*position \d+ of row \d+, most for token \d+ .*nothing was exported",
        ),
        ("q8_0", unpermuted, "log-probabilities differ.*try --dtype float32"),
        ("float32", other_base, "log-probabilities differ"),
        ("float32", other_eps, "log-probabilities differ"),
        ("float32", no_bos, r"llama\.cpp gives other ids for 'Hello, world!': from position 0 on"),
        ("float32", reversed_merges, r"llama\.cpp gives other ids for"),
        ("float32", cut_short, r"llama\.cpp cannot load the export .*nothing was exported"),
    ],
)
@pytest.mark.slow
def test_a_file_of_another_model_is_not_published(make_run, tmp_path, monkeypatch, dtype, damage, says):
    run = make_run()
    damage(monkeypatch)
    with pytest.raises(ExportError, match=says):
        export_run(run, tmp_path / "out", format="gguf", dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made-tokenizer", "run"]


@pytest.mark.parametrize("missing", ["gguf", "xllamacpp"])
def test_a_missing_library_is_its_pip_line(make_run, tmp_path, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(ExportError, match=rf"needs {missing}, .* run `pip install 'packtrain\[gguf\]'`"):
        export_run(make_run(), tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def test_qwen3_with_stretched_frequencies_is_refused(make_run, tmp_path):
    run = make_run(qk_norm=True, rope_scaling=LLAMA3, max_position_embeddings=256)
    with pytest.raises(ExportError, match=r"llama\.cpp has no Qwen3"):
        export_run(run, tmp_path / "out", format="gguf")


def test_weights_beyond_float16_are_refused(make_run, tmp_path):
    run = make_run()
    with torch.no_grad():
        run.model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"ffn_up\.weight has values that float16 cannot represent"):
        export_run(run, tmp_path / "out", format="gguf", dtype="f16")
    assert not (tmp_path / "out").exists()


def test_rows_come_back_from_their_interleaved_order():
    weight = torch.arange(24.0).view(12, 2)
    interleaved = interleave_rows(weight, 2)
    # Heads of width 6: pairs (0, 3), (1, 4), (2, 5) become neighbours.
    assert interleaved[:, 0].tolist() == [0, 6, 2, 8, 4, 10, 12, 18, 14, 20, 16, 22]
    assert torch.equal(separate_rows(interleaved, 2), weight)


def train(folder, pre, *, normalizer=None, ignore_merges=False, special=("<s>", "</s>")):
    raw = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    raw.pre_tokenizer, raw.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        raw.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [*TEXT, "I'LL say 1234567 it's 2024-10-31 … naïve\r\n\n  x", "    for i in range(1000):\n\t\tpass"] * 3
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return save(raw, folder)


def split(name):
    steps = [
        pre_tokenizers.Split(Regex(step["pattern"]["Regex"]), "isolated")
        if step["type"] == "Split"
        else pre_tokenizers.Digits(individual_digits=True)
        if step["type"] == "Digits"
        else pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step["use_regex"])
        for step in PRE_TOKENIZERS[name].steps
    ]
    return pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_each_pre_tokenizer_is_named_and_cuts_alike(make_run, tmp_path, name):
    ignores = PRE_TOKENIZERS[name].ignores_merges
    normalizer = normalizers.NFC() if name == "qwen2" else None
    tokenizer = train(tmp_path / "tok", split(name), normalizer=normalizer, ignore_merges=ignores)
    checks = export_run(make_run(tokenizer=tokenizer), tmp_path / "out", format="gguf").checks
    assert read(tmp_path / "out").get_field("tokenizer.ggml.pre").contents() == name
    assert bool(checks.remarks) is (name == "qwen2")


def unigram(folder):
    raw = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("▁", -2.0)], unk_id=0))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    raw.add_special_tokens(["<s>", "</s>"])
    return save(raw, folder)


def never_merged(folder):
    """As a library trains it: each token has one pair, and others that join to it are never merged."""
    make_llama_like(folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    for piece in ("th", "▁th"):
        vocab[piece] = len(vocab)
    spec["model"]["merges"].append(["▁t", "h"])
    shutil.rmtree(folder)
    return save(Tokenizer.from_str(json.dumps(spec)), folder)


REFUSED = {
    "unigram": (unigram, "its model is Unigram"),
    "a merge that is not listed": (never_merged, "it never merges"),
    "unknown words": (
        lambda folder: train(folder, pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), split("gpt-2")])),
        "no pre-tokenizer that cuts",
    ),
    "lower case": (lambda folder: train(folder, split("gpt-2"), normalizer=normalizers.Lowercase()), "Lowercase"),
    "no ends": (lambda folder: train(folder, split("gpt-2"), special=()), "neither BOS nor EOS"),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused(tmp_path, make, says):
    tokenizer = make(tmp_path / "tok")
    with pytest.raises(ExportError, match=f"cannot be written as GGUF: .*{says}.*write --format hf"):
        describe_tokenizer(Conditions(tokenizer, False, 64), tokenizer.vocab_size)


def test_an_end_that_the_tokenizer_lacks_is_a_token_that_cannot_end_a_text_early(tmp_path):
    only_eos = train(tmp_path / "a", split("gpt-2"), special=("</s>",))
    described = describe_tokenizer(Conditions(only_eos, False, 64), only_eos.vocab_size)
    assert (described.bos_id, described.eos_id) == (only_eos.eos_id, only_eos.eos_id)
    neither = train(tmp_path / "b", split("gpt-2"), special=())
    described = describe_tokenizer(Conditions(neither, False, 64), neither.vocab_size + 2)
    assert described.eos_id == neither.vocab_size + 1 and described.tokens[-1].startswith("[PAD")


def test_a_sentencepiece_vocabulary_lists_every_merge(tmp_path):
    assert find_unlisted_merge(make_llama_like(tmp_path / "tok")) is None


def test_the_reader_ends_with_its_caller(tmp_path):
    """Its standard input is held by the caller alone."""
    (tmp_path / "request.json").write_text("{}")
    source = f"import runpy, sys, time\nsys.modules['xllamacpp'] = None\nm = runpy.run_path({llamacpp.__file__!r})\n"
    source += "import threading\nthreading.Thread(target=m['_end_with_caller'], daemon=True).start()\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 1
