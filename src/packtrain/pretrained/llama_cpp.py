"""Decides what llama.cpp makes of a GGUF: the log-probabilities of next tokens, computed in a process of its own.

A file that is not what it says may end llama.cpp's process, and its threads would stay in ours. Run as a module, this file
is that process: a request as JSON on standard input, the answer on the last line of standard output.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_TIMEOUT_S = 600


def find_version() -> str | None:
    """The version of xllamacpp, which brings llama.cpp; None if it is not installed."""
    found = importlib.util.find_spec("xllamacpp") is not None
    return importlib.metadata.version("xllamacpp") if found else None


def measure(path: Path, prompts: list[list[int]], num_likeliest: int, plain_id: int) -> list[dict[int, float]]:
    """For each prompt of ids, the log-probabilities of the likeliest next tokens by id. Raises ValueError with a reason.

    `plain_id`: a token that stands for whole characters.
    """
    request = {"path": str(path), "prompts": prompts, "num_likeliest": num_likeliest, "plain_id": plain_id}
    command = [sys.executable, "-m", "packtrain.pretrained.llama_cpp"]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=_TIMEOUT_S, errors="replace"
        )
        lines = done.stdout.splitlines()
        answers = json.loads(lines[-1]) if done.returncode == 0 and lines else None
    except subprocess.TimeoutExpired:
        raise ValueError(f"it gave no answer in {_TIMEOUT_S} s") from None
    except (json.JSONDecodeError, OSError) as error:
        raise ValueError(str(error)) from None
    if answers is None:
        said = [line for line in done.stderr.splitlines() if "rror" in line]
        raise ValueError(said[-1][:200] if said else f"it ended with exit code {done.returncode}")
    return [{int(key): value for key, value in answer.items()} for answer in answers]


def _answer(request: dict[str, Any]) -> list[dict[str, float]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = request["path"]
    params.n_ctx = params.n_batch = max(map(len, request["prompts"])) + 8
    params.n_parallel, params.n_gpu_layers = 1, 0
    params.warmup = params.ui = params.fit_params = False
    # Threads that wait in a loop would take the time of others.
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    # Its default rounds keys and values to half precision.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    answers = []
    for prompt in request["prompts"]:
        options = {"n_predict": 1, "n_probs": request["num_likeliest"], "temperature": 0, "cache_prompt": False}
        # It says nothing of a token that ends the text or is a part of a character: it is made to choose another. What it
        # chooses does not change the probabilities.
        options["logit_bias"] = [[request["plain_id"], 1e4]]
        reply = server.handle_completions({"prompt": prompt, **options})
        found = json.loads(reply) if isinstance(reply, str | bytes) else reply
        if "choices" not in found:
            raise ValueError(str(found.get("error", found))[:200])
        likeliest = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        answers.append({str(each["id"]): each["logprob"] for each in likeliest})
    return answers


if __name__ == "__main__":
    # Its own lines may come before, on either stream.
    print("\n" + json.dumps(_answer(json.load(sys.stdin))), flush=True)
    # llama.cpp's threads may not end by themselves.
    os._exit(0)
