"""The programs that a GGUF is for take the export as it is: llama.cpp's server over HTTP, and Ollama's Modelfile."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest

from packtrain.api.models import load
from packtrain.export.run import export_run
from tests.export import modelfile

_NUM_NEW = 12
# In a process of its own, whose threads end with it: the export's own check holds its server in the same way.
_SERVER = """
import os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.n_gpu_layers = 64, 1, 0
params.warmup = params.fit_params = False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cpuparams.poll = params.cpuparams_batch.poll = 0
server = xllamacpp.Server(params)
print("at", server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def llama_server(path) -> Iterator[str]:
    command = [sys.executable, "-c", _SERVER, str(path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield next(line.split()[1] for line in process.stdout if line.startswith("at "))
        finally:
            process.communicate("")


@pytest.mark.slow
def test_llama_cpps_server_answers_http_with_our_greedy_text(make_run, tmp_path):
    pytest.importorskip("xllamacpp")
    run = make_run()
    export_run(run, tmp_path / "out", format="gguf")
    prompts = ("The quick brown fox", "Zürich 北京", "def f(x):\n")
    ours = load(run.layout.folder).answer(prompts, temperature=0.0, max_tokens=_NUM_NEW)
    with llama_server(tmp_path / "out" / "model-F32.gguf") as address, httpx.Client(base_url=address) as client:
        api = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        for prompt, [answer] in zip(prompts, ours, strict=True):
            asked = {"prompt": prompt, "n_predict": _NUM_NEW, "temperature": 0, "return_tokens": True}
            theirs = client.post("/completion", json=asked).raise_for_status().json()
            assert theirs["tokens"] == answer.token_ids
            made = api.completions.create(model="any", prompt=prompt, max_tokens=_NUM_NEW, temperature=0)
            assert made.choices[0].text == theirs["content"]


def test_the_modelfile_is_one_by_ollamas_grammar(make_run, tmp_path):
    export_run(make_run(), tmp_path / "out", format="gguf", dtype="q8_0")
    found = modelfile.parse((tmp_path / "out" / "Modelfile").read_text(encoding="utf-8"))
    given = dict(found)
    assert len(given) == len(found), "nothing is said twice"
    assert (tmp_path / "out" / given["from"]).is_file() and given["from"].startswith("./")
    assert given["template"] == "{{ .Prompt }}", "a base model: no more than the prompt"
    assert given["parameter num_ctx"] == "64" and 0 < float(given["parameter temperature"]) <= 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('FROM ./a.gguf\nTEMPLATE """a\n"b" {{ .Prompt }}\n"""', ("template", 'a\n"b" {{ .Prompt }}\n')),
        ('from x\nPARAMETER stop "</s> "', ("parameter stop", "</s> ")),
        ("FROM x\n# no\nMESSAGE user Is it?", ("message user", "Is it?")),
        ('FROM x\nTEMPLATE """a', "never closed"),
        ('FROM x\nTEMPLATE "a\nb"', "never closed"),
        ('FROM x\nTEMPLATE """a""" b', "more than one"),
        ("FROM x\nPARAMETER heat 1", "no parameter"),
        ("FROM x\nPARAMETER num_ctx 1.5", "invalid literal"),
        ("FROM x\nUSE y", "no instruction"),
        ("FROM", "no value"),
        ("TEMPLATE a", "not one FROM"),
    ],
)
def test_the_parser_is_strict(text, found):
    if isinstance(found, tuple):
        assert modelfile.parse(text)[-1] == found
        return
    with pytest.raises(ValueError, match=re.escape(found)):
        modelfile.parse(text)
