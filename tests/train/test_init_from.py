"""A run that starts from a model from elsewhere has its weights at step 0, says where they are from, and resumes without it."""

import json
import shutil

import pytest
import safetensors.torch
import torch

import packtrain as pt
from packtrain import errors
from packtrain.data.format.shards import open_dataset
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.errors import ConfigError, ModelError, RunError, TokenizerError
from packtrain.pretrained.open import open_model
from packtrain.pretrained.vocabulary import find_difference
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from tests.command_line import packtrain
from tests.pretrained.conftest import change_config, make_folder  # noqa: F401  a fixture
from tests.pretrained.written import write_gguf, write_llama2c
from tests.train.conftest import TINY
from tests.train.test_distributed import torchrun
from tests.train.test_resume import StopAt, final_state

NOT_OF_THE_MODEL = [word for word in TINY if not word.startswith("model.")]
STILL = ("train.steps=1", "optim.lr=1e-30", "optim.weight_decay=0")


@pytest.fixture
def given(dataset):
    return [*NOT_OF_THE_MODEL, f"data.dataset={dataset}"]


@pytest.fixture
def llama(make_folder, dataset):  # noqa: F811  a fixture
    """A Llama with grouped queries, an output projection of its own, and more rows than its tokenizer has ids."""
    return make_folder(vocab_size=700, tokenizer=open_dataset(dataset).tokenizer_folder)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    from tests.export.conftest import make_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    make_tokenizer(folder)
    return folder


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def weights(folder):
    """The weights at the end of a run."""
    return checkpoint.find_newest(RunLayout(folder)).read_whole(only_weights=True)


def first_loss(folder):
    return next(line["loss"] for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line)


@pytest.mark.slow
def test_it_starts_from_the_weights_in_their_shape_and_resumes_without_them(llama, given, tmp_path):
    moved = shutil.copytree(llama, tmp_path / "moved")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    outcome = packtrain("train", "demo", *given, "--init-from", llama, "--run", whole)
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.err.split())
    assert "from the weights in" in said and "not from the preset: model.hidden_size=32" in said
    assert f"step 0, with the weights of {llama} (Hugging Face folder); the learning rate warms up again over 2" in said
    record = manifest(whole)["started_from"]
    assert record["kind"] == "Hugging Face folder" and record["path"] == str(llama) and len(record["hash"]) == 32
    assert record["parity"]["max_difference"] < record["parity"]["tolerance"]
    assert record["parity"]["reference"].startswith("transformers ") and record["parity"]["num_tokens"] == 128
    # Nothing is learnt yet at step 1: its loss is that of the model itself, on the same rows.
    reference = open_model(llama).model
    config = pt.load(whole).model.config
    assert config == reference.config and config.vocab_size == 700 and not config.tie_word_embeddings
    assert config.max_position_embeddings == 64
    with pytest.raises(errors.Interrupted):
        pt.train("demo", *given, init_from=moved, run=parts, on_step=StopAt(5))
    shutil.rmtree(moved)
    pt.resume(parts)
    assert final_state(whole)[1:] == final_state(parts)[1:]


def test_the_weights_are_those_of_the_files(llama, given, tmp_path):
    # Nothing moves at this learning rate.
    pt.train("demo", *given, *STILL, init_from=llama, run=tmp_path / "run")
    source = dict(open_model(llama).model.named_parameters())
    assert source.keys() == weights(tmp_path / "run").keys()
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, source[name].detach())


def test_files_of_other_programs_start_a_run_too(make_folder, dataset, given, tmp_path):  # noqa: F811
    own = open_dataset(dataset).tokenizer_folder
    source = make_folder(vocab_size=512, rms_norm_eps=1e-5, tokenizer=own)
    written = {
        "GGUF": write_gguf(source, tmp_path / "model.gguf", "BF16"),
        "llama2.c": write_llama2c(source, source / "weights.bin", 1),
    }
    for kind, path in written.items():
        folder = tmp_path / kind
        pt.train("demo", *given, *STILL, init_from=path, run=folder)
        record = manifest(folder)["started_from"]
        assert record["kind"] == kind and record["parity"]["max_difference"] <= record["parity"]["tolerance"]
        expected = dict(open_model(path).model.named_parameters())
        for name, tensor in weights(folder).items():
            torch.testing.assert_close(tensor, expected[name].detach())
        done = packtrain("tokenizer", path, "--out", tmp_path / f"{kind}-tokenizer", "--json")
        assert done.code == 0 and json.loads(done.out)["vocab_size"] == 512, done.err
        assert find_difference(load_tokenizer(tmp_path / f"{kind}-tokenizer"), load_tokenizer(own)) is None
    assert packtrain("tokenizer", path, "--out", tmp_path / f"{kind}-tokenizer").code == 2


@pytest.mark.slow
def test_two_processes_start_alike_in_either_mode(llama, given, tmp_path):
    words = ["train", "demo", *given, "train.steps=2", "--init-from", llama]
    assert packtrain(*words, "--run", tmp_path / "one").code == 0
    for mode in ("ddp", "fsdp"):
        folder = tmp_path / mode
        torchrun(2, "-m", "packtrain", *words, f"parallel.mode={mode}", "--run-dir", folder)
        assert first_loss(folder) == pytest.approx(first_loss(tmp_path / "one"), rel=1e-5)
        assert manifest(folder)["started_from"]["hash"] == manifest(tmp_path / "one")["started_from"]["hash"]
        for name, tensor in weights(tmp_path / "one").items():
            torch.testing.assert_close(weights(folder)[name], tensor, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused(llama, given, make_folder, dataset, tmp_path):  # noqa: F811
    def refuses(error, sentence, *settings, source=llama, **options):
        with pytest.raises(error, match=sentence):
            pt.train("demo", *given, *settings, init_from=source, run=tmp_path / "run", **options)
        assert not (tmp_path / "run" / "config.toml").exists()

    refuses(
        ConfigError,
        r"model.hidden_size=64 \(from the command line\), and .* have model.hidden_size=32",
        "model.hidden_size=64",
    )
    refuses(
        ConfigError,
        "model.tie_word_embeddings=true .* have model.tie_word_embeddings=false",
        "model.tie_word_embeddings=true",
    )
    refuses(ConfigError, "data.seq_len=128 is longer than the context of .*, 64", "data.seq_len=128")
    refuses(ConfigError, "train.init_from and train.continue_from both", f"train.continue_from={llama}")
    refuses(RunError, "nowhere does not exist", source=tmp_path / "nowhere")
    refuses(ModelError, "is neither a run nor a model", source=dataset)
    refuses(TokenizerError, r"prepared with another tokenizer .* --extend-vocab", source=make_folder("other"))
    assert pt.plan("demo", *given, f"train.init_from={llama}")["parameters"]["total"] == sum(
        parameter.numel() for parameter in open_model(llama).model.parameters()
    )
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "demo"\n[model]\nrms_norm_eps = 0.5\n')
    with pytest.raises(ConfigError, match=r"model.rms_norm_eps=0.5 \(from .*mine.toml\), and the weights"):
        pt.train(mine, *given, init_from=llama, run=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train.extend_vocab needs train.init_from or train.continue_from"):
        pt.train("demo", *given, extend_vocab=True, run=tmp_path / "run")


def test_a_model_that_reads_differently_elsewhere_is_refused(llama, given, tmp_path, monkeypatch):
    import packtrain.pretrained.parity as parity

    # Stands for a reader that disagrees: half the logits.
    theirs = parity._REFERENCES["Hugging Face folder"]

    def halved(*arguments):
        found = theirs(*arguments)
        return found._replace(logits_BTV=found.logits_BTV / 2)

    monkeypatch.setitem(parity._REFERENCES, "Hugging Face folder", halved)
    with pytest.raises(ModelError, match=r"logits differ from those of transformers .* is allowed"):
        pt.train("demo", *given, init_from=llama, run=tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()


def test_a_start_that_was_killed_starts_again_from_the_same_weights_only(llama, given, tmp_path):
    folder = tmp_path / "run"

    def kill(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pt.train("demo", *given, init_from=llama, run=folder, on_step=kill)
    tensors = safetensors.torch.load_file(llama / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    saved = (llama / "model.safetensors").read_bytes()
    safetensors.torch.save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"has changed since .* was started from it .* no checkpoint yet"):
        pt.resume(folder)
    (llama / "model.safetensors").write_bytes(saved)
    assert pt.resume(folder)["step"] == 10
    pt.train("demo", *given, init_from=llama, run=tmp_path / "whole")
    assert final_state(folder) == final_state(tmp_path / "whole")


def test_another_vocabulary_keeps_the_rows_of_shared_tokens(make_folder, dataset, given, tmp_path):  # noqa: F811
    source = make_folder(tie_word_embeddings=False)
    old, new = load_tokenizer(source), load_tokenizer(open_dataset(dataset).tokenizer_folder)
    folder = tmp_path / "run"
    options = {"init_from": source, "extend_vocab": True, "run": folder}
    pt.train("demo", *given, *STILL, **options)
    before, after = dict(open_model(source).model.named_parameters()), weights(folder)
    names, rows = old.raw.get_vocab(), new.raw.get_vocab()
    shared = sorted(names.keys() & rows.keys())
    fresh = sorted(rows.keys() - names.keys())
    assert len(shared) > 256 and len(fresh) > 100
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert after[name].shape == (512, 32)
        there, here = ([vocab[token] for token in shared] for vocab in (names, rows))
        torch.testing.assert_close(after[name][here], before[name].detach()[there])
        mean = before[name].detach()[:320].mean(dim=0)
        torch.testing.assert_close(after[name][[rows[token] for token in fresh]], mean.expand(len(fresh), -1))
    counts = manifest(folder)["started_from"]["vocabulary"]
    assert counts == {
        "tokens_before": 320,
        "tokens": 512,
        "kept": len(shared),
        "set_to_mean": len(fresh),
        "dropped": 320 - len(shared),
    }


def test_a_folder_whose_tie_is_undone_is_refused(llama, given, tmp_path):
    change_config(llama, tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"lm_head.weight differs"):
        pt.train("demo", *given, init_from=llama, run=tmp_path / "run")
