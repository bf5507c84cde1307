"""Same model everywhere. An export is published only after transformers, llama.cpp or a reader of llama2.c's format has computed
the same numbers."""

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.command_line import packtrain
from transformers import AutoModelForCausalLM, AutoTokenizer

from packtrain.export import huggingface
from packtrain.export.format import Subject
from packtrain.export.formats import FORMATS
from packtrain.pretrained.huggingface import WEIGHTS
from packtrain.runs.checkpoint import open_run


def test_transformers_gives_the_same_logits_and_the_same_text(run: Path, tmp_path: Path) -> None:
    done = packtrain("export", run, "--format", "hf", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    checks = json.loads(done.out)["checks"]
    assert checks["max_logit_difference"] <= checks["tolerance"] and checks["text"] == "validation split"
    theirs, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    tokens = tokenizer("Document 0.1. the of and", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, open_run(run).model(tokens), rtol=0, atol=1e-4)
    words = ("--prompt", "Document 0.1. the of and", "--max-tokens", 8, "--temperature", 0, "--json")
    text = json.loads(packtrain("generate", run, *words).out)["text"]
    output = theirs.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, tokens.shape[1] :]
    assert tokenizer.decode(output, skip_special_tokens=True) == text


def test_an_export_that_is_another_model_is_not_published(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another_model(subject: Subject, folder: Path) -> None:
        huggingface.write(subject, folder)
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        tensors["model.layers.1.mlp.up_proj.weight"] *= 1.5
        safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    right = FORMATS["hf"]
    monkeypatch.setitem(FORMATS, "hf", dataclasses.replace(right, write=write_another_model))
    done = packtrain("export", run, "--format", "hf", "--out", tmp_path / "out")
    assert done.code == 2 and "logits differ" in done.sentence
    assert list(tmp_path.iterdir()) == []
