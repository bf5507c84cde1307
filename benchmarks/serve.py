"""What the server adds to the model: the time to the first token, many streams against one, and memory over thousands of requests.

    python -m benchmarks.serve --shape 15m --json serve.json

The weights are random, which costs the same time as trained ones. The server is in this process and its clients in another, over
loopback. `first token`: from sending a request with a prompt of 512 ids to the first event of its stream, and, in turns with it,
the model's own time for the same prompt. `streams`: tokens/s of one stream, and of 16 at once, after one another in each round, 64 greedy
tokens each after a prompt of 64. `requests`: short ones from 16 clients that never wait, with the resident memory of the server
after each tenth of them. Medians; of the first token also the fastest, which other programs disturb least.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.generate import CONTEXT, SHAPES, VOCABULARY, make_tokenizer
from benchmarks.serve_client import STREAMS
from packtrain.config.load import load_run_config
from packtrain.generate.batch import Engine
from packtrain.generate.settings import GenerateSettings
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.cpu.name import cpu_name
from packtrain.model.init import build
from packtrain.pretrained.open import OpenModel
from packtrain.serve.limits import ServeLimits
from packtrain.serve.page import PageParts
from packtrain.serve.server import Serving, Where

PROMPT, FIRST_PROMPT = 64, 512


class Client:
    """The process of the clients; it imports no torch."""

    def __init__(self, address: str) -> None:
        command = [sys.executable, "-m", "benchmarks.serve_client", address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the figures, and return what `--json` writes."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    preset = load_run_config(SHAPES[options.shape]).config.model
    config = preset.model_copy(update={"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT})
    with tempfile.TemporaryDirectory(prefix="packtrain-serve-") as scratch:
        tokenizer = make_tokenizer(Path(scratch))
        model = build(config, seed=0).eval()
        use_cpu_kernels(model)
        opened = OpenModel("bench", Path(scratch), model, tokenizer, False, CONTEXT, None, None)
        limits = ServeLimits(slots=STREAMS)
        with (
            Serving(opened, Where(port=0), limits, PageParts("", "", None)) as server,
            Client(server.address) as client,
        ):
            report = {"shape": options.shape, "threads": options.threads, "cpu": cpu_name()}
            report |= _first_token(client, opened, options.rounds)
            report |= _streams(client, options.rounds, options.tokens)
            report |= _requests(client, options.requests)
    for name, value in report.items():
        print(f"{name:<28} {value if isinstance(value, str) else json.dumps(value)}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="15m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of a text")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def _first_token(client: Client, opened: OpenModel, rounds: int) -> dict[str, Any]:
    """The model's own time in an engine of its own, and the server's, in turns; each prompt is another one."""
    draw = torch.Generator().manual_seed(1)
    engine = Engine(opened.model, opened.tokenizer, context_length=CONTEXT)
    own, served = [], []
    for _ in range(max(rounds, 5) * 2):
        ids = torch.randint(3, VOCABULARY, (FIRST_PROMPT,), generator=draw).tolist()
        time.sleep(0.1)
        began = time.perf_counter()
        stream = engine.add(ids, GenerateSettings(max_tokens=2, temperature=0))
        while not engine.step():
            pass
        own.append(time.perf_counter() - began)
        engine.remove(stream)
        time.sleep(0.1)
        served += client.ask({"prompts": [ids], "tokens": 2})["first_s"]
    found: dict[str, Any] = {}
    for how, pick in (("median", statistics.median), ("fastest", min)):
        ours, theirs = 1000 * pick(own), 1000 * pick(served)
        found |= {f"own_first_token_ms_{how}": round(ours, 2), f"served_first_token_ms_{how}": round(theirs, 2)}
        found[f"first_token_ratio_{how}"] = round(theirs / ours, 3)
    return found


def _streams(client: Client, rounds: int, num_tokens: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(2)
    one, many = [], []
    for _ in range(rounds):
        prompts = torch.randint(3, VOCABULARY, (STREAMS, PROMPT), generator=draw).tolist()
        for count, rates in ((1, one), (STREAMS, many)):
            told = client.ask({"prompts": prompts[:count], "tokens": num_tokens})
            assert told["counts"] == [num_tokens] * count, told
            rates.append(count * num_tokens / told["seconds"])
    single, together = statistics.median(one), statistics.median(many)
    return {
        "one_stream_tokens_per_s": round(single, 1),
        f"{STREAMS}_streams_tokens_per_s": round(together, 1),
        "streams_ratio": round(together / single, 2),
    }


def _requests(client: Client, count: int) -> dict[str, Any]:
    """Resident megabytes after each tenth of the requests; the first tenth warms up."""
    process, resident, num_failed = psutil.Process(), [], 0
    began = time.perf_counter()
    for tenth in range(10):
        told = client.ask({"short": count // 10, "seed": tenth})
        num_failed += told["failed"]
        resident.append(round(process.memory_info().rss / 1e6, 1))
    return {
        "requests": count,
        "failed": num_failed,
        "requests_per_s": round(count / (time.perf_counter() - began), 1),
        "resident_mb": resident,
        "growth_mb": round(resident[-1] - resident[0], 1),
    }


if __name__ == "__main__":
    main()
