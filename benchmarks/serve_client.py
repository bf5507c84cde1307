"""The clients of `benchmarks.serve`: a process that asks the server at an address for what it reads from standard input, a line each."""

import asyncio
import json
import sys
import time
from typing import Any

import httpx

STREAMS, SHORT = 16, 4
# The end of a text is banned, so that each has as many tokens as were asked for.
ENDLESS = {"temperature": 0, "logit_bias": {"2": -100}}


async def main(address: str) -> None:
    """Answers each line of standard input with a line, until it ends."""
    limits = httpx.Limits(max_connections=STREAMS, max_keepalive_connections=STREAMS)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        for line in sys.stdin:
            print(json.dumps(await _do(client, json.loads(line))), flush=True)


async def _do(client: httpx.AsyncClient, what: dict[str, Any]) -> dict[str, Any]:
    if "short" in what:
        return {"failed": await _send_short(client, what["short"], what["seed"])}
    # Its connections are open, as those of a client that has asked before.
    await asyncio.gather(*(client.get("/healthz") for _ in what["prompts"]))
    began = time.perf_counter()
    told = await asyncio.gather(*(_stream(client, ids, what["tokens"]) for ids in what["prompts"]))
    return {
        "seconds": time.perf_counter() - began,
        "first_s": [first for first, _ in told],
        "counts": [count for _, count in told],
    }


async def _stream(client: httpx.AsyncClient, ids: list[int], num_tokens: int) -> tuple[float, int]:
    """Seconds until the first event, and how many tokens came in all."""
    options = {"include_usage": True}
    body = {"prompt": ids, "max_tokens": num_tokens, "stream": True, "stream_options": options, **ENDLESS}
    began, first, last = time.perf_counter(), 0.0, ""
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, answer.status_code
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - began
                last = line
    return first, json.loads(last[6:])["usage"]["completion_tokens"]


async def _send_short(client: httpx.AsyncClient, count: int, seed: int) -> int:
    left, failed = iter(range(count)), 0

    async def send() -> None:
        nonlocal failed
        for number in left:
            body = {"prompt": [3 + (seed * count + number) % 1000] * 8, "max_tokens": SHORT, **ENDLESS}
            answer = await client.post("/v1/completions", json=body)
            is_whole = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == SHORT
            failed += not is_whole

    await asyncio.gather(*(send() for _ in range(STREAMS)))
    return failed


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
