"""Decides what llama.cpp is asked about a GGUF file; runs as a program of its own, because a bad file ends its whole process.

`python llamacpp.py REQUEST.json ANSWER.json`. It imports nothing of packtrain. Whatever llama.cpp prints is its caller's.
"""

import json
import os
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any


def main(request_path: str, answer_path: str) -> None:
    """Answers a request: log-probabilities after some prefixes, greedy continuations, ids of texts and texts of ids."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    request: dict[str, Any] = json.loads(Path(request_path).read_text(encoding="utf-8"))
    server = _load(request)
    answer = {
        "positions": [_next_token(server, prefix, request["top"], request["plain"]) for prefix in request["prefixes"]],
        "greedy": [_continue(server, prompt, request["num_new"]) for prompt in request["prompts"]],
        "encoded": [
            _post(server, "/tokenize", {"content": text, "add_special": True, "parse_special": False})["tokens"]
            for text in request["texts"]
        ],
        "decoded": [_post(server, "/detokenize", {"tokens": ids})["content"] for ids in request["ids"]],
    }
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")
    # Its threads may not end by themselves.
    os._exit(0)


def _load(request: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = request["model"]
    params.n_ctx = request["context"]
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.fit_params = False
    params.verbosity = 1
    # Threads that wait in a loop would take the time of the caller's.
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
    # The default keeps keys and values in half precision, which would hide differences of its size.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def _next_token(server: Any, prefix: list[int], top: int, plain: int) -> dict[str, list[Any]]:
    """The likeliest `top` tokens after a prefix, with their log-probabilities."""
    # The server says nothing of a token that ends the text or is a part of a character: it is made to choose another. What
    # it chooses does not change the probabilities.
    request = {"prompt": prefix, "n_predict": 1, "temperature": 0, "n_probs": top, "logit_bias": [[plain, 1e4]]}
    found = _post(server, "/completion", request | {"cache_prompt": True})
    listed = found["completion_probabilities"][0]["top_logprobs"]
    return {"ids": [entry["id"] for entry in listed], "logprobs": [entry["logprob"] for entry in listed]}


def _continue(server: Any, prompt: list[int], num_new: int) -> list[int]:
    request = {"prompt": prompt, "n_predict": num_new, "temperature": 0, "return_tokens": True}
    return list(_post(server, "/completion", request)["tokens"])


def _post(server: Any, path: str, body: dict[str, Any]) -> Any:
    """An answer of llama.cpp's own server, which listens on the loopback interface alone."""
    request = urllib.request.Request(
        server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    # Not by a proxy that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as response:
        return json.loads(response.read())


def _end_with_caller() -> None:
    """The caller holds the other end of standard input, also if it is killed."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
