"""Decides whether a model that is loaded in Python, from a run or an export, is the model that was trained."""

import json
import shutil
from dataclasses import fields
from typing import get_type_hints

import pytest
import torch

import packtrain as pt
from packtrain.api.models import GenerateOptions
from packtrain.errors import ConfigError, ExportError, RunError, UserError
from packtrain.generate.settings import GenerateSettings


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "hf"
    assert pt.export(run, out=folder).step == 8
    return folder


def test_a_prompt_is_continued(run):
    model = pt.load(run)
    text = model.generate("the loss", max_tokens=8, seed=1)
    assert text == model.generate("the loss", max_tokens=8, seed=1) and text
    stream = model.stream("the loss", max_tokens=8, seed=1)
    assert "".join(stream) == text and stream.finish_reason in ("length", "eos") and len(stream.token_ids) <= 8
    assert model.generate("the loss", max_tokens=8, seed=1, stop=text[-1]) == text.partition(text[-1])[0]
    assert model.step == 8 and pt.load(run, step=4).step == 4 and "step 8" in repr(model)


def test_logits_have_the_shape_that_is_documented(run):
    model = pt.load(run)
    ids = model.encode("the loss of a step")
    logits_TV = model.logits("the loss of a step")
    assert logits_TV.shape == (len(ids), 512) and logits_TV.dtype == torch.float32 and not logits_TV.requires_grad
    assert torch.equal(model.logits(ids), logits_TV)
    assert torch.allclose(model.logits([ids, ids])[1], logits_TV, atol=1e-5)
    assert model.logits(torch.tensor([ids])).shape == (1, len(ids), 512)
    greedy = model.stream("the loss of a step", max_tokens=1, temperature=0)
    list(greedy)
    assert greedy.token_ids == [int(logits_TV[-1].argmax())]
    assert model.decode(ids).strip() == "the loss of a step"


@pytest.mark.parametrize("given", [[], [[1, 2], [3]], [512], [-1], [0.5], [0] * 33, [[[1]]], "", ["a"]])
def test_what_has_no_logits_is_refused(run, given):
    model = pt.load(run)
    if given == "" and model.conditions.add_bos:
        assert model.logits("").shape == (1, 512)
        return
    with pytest.raises(UserError):
        model.logits(given)


def test_an_export_is_the_same_model(run, exported):
    ours, theirs = pt.load(run), pt.load(exported)
    text = "a batch of tokens, and the next file"
    assert theirs.encode(text) == ours.encode(text) and theirs.step is None
    assert torch.allclose(theirs.logits(text), ours.logits(text), atol=1e-5)
    assert theirs.generate(text, seed=3, max_tokens=6) == ours.generate(text, seed=3, max_tokens=6)
    assert theirs.context_length == ours.context_length


def test_a_folder_that_is_another_model_is_refused(exported, dataset, tmp_path):
    changes = {
        "its architecture is MistralForCausalLM": {"architectures": ["MistralForCausalLM"]},
        "its attention_bias is not that of a plain Llama": {"attention_bias": True},
        "its hidden_act": {"hidden_act": "gelu"},
        "has shape": {"intermediate_size": 48},
        "no max_position_embeddings": {"max_position_embeddings": None},
        "hidden_size of config.json": {"hidden_size": "wide"},
    }
    for number, (sentence, change) in enumerate(changes.items()):
        folder = shutil.copytree(exported, tmp_path / str(number))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ExportError, match=sentence):
            pt.load(folder)
    torn = shutil.copytree(exported, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ExportError, match="cannot be read"):
        pt.load(torn)
    (torn / "config.json").write_text("{")
    with pytest.raises(ExportError, match="is not JSON"):
        pt.load(torn)
    for folder, sentence in ((dataset, "is a dataset"), (tmp_path / "nowhere", "does not exist")):
        with pytest.raises(RunError, match=sentence):
            pt.load(folder)
    with pytest.raises(ConfigError, match="has no checkpoints"):
        pt.load(exported, step=4)


def test_options_are_those_of_the_settings(run):
    assert set(get_type_hints(GenerateOptions)) == {field.name for field in fields(GenerateSettings)}
    with pytest.raises(ConfigError, match="there is no option 'temprature'; write one of"):
        pt.load(run).generate("a", temprature=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="out of range"):
        pt.load(run).generate("a", temperature=-1)
