"""Tokens per second of generation against transformers' `generate` and llama.cpp, on the CPU, with the same weights and threads.

    python -m benchmarks.generate --shape 110m --rounds 5 --json generate.json

The weights are random, which costs the same time as trained ones. All contenders are in one process and take turns, in another
order each round, so that a busy machine slows all of them; figures are medians. `decode`: a prompt of 16 tokens and 64 greedy
tokens after it, in tokens/s of the 63 that follow the first. `prefill`: the seconds until the first token after a prompt of 512.
`sixteen`: the same decoding for 16 prompts at once, in tokens/s of all. llama.cpp reports its own times.

`read rate` is what two loads say of the memory: torch's sum over a large float32 tensor, and this step's own product of one
large matrix with a vector; the faster of the two counts. A contender's share of it is tokens/s times the bytes of the weights
that a token reads.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from packtrain.config.load import load_run_config
from packtrain.config.model import ModelConfig
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.generate.batch import Engine
from packtrain.generate.settings import GenerateSettings
from packtrain.generate.weights import narrow_weights
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.cpu.name import cpu_name
from packtrain.model.init import build
from packtrain.model.llama import Llama

SHAPES = {"15m": "llama2-15m", "42m": "llama2-42m", "110m": "llama2-110m", "437m": "llama2-437m"}
VOCABULARY = 32_000
CONTEXT = 1024
SHORT, LONG = 16, 512
OURS, NARROW = "packtrain", ("packtrain bfloat16", "packtrain int8")
Timed = Callable[[list[int], int], tuple[float, float]]
"""Continues a prompt by a number of tokens; returns seconds until the first and seconds of all others."""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return what `--json` writes."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    preset = load_run_config(SHAPES[options.shape]).config.model
    config = preset.model_copy(update={"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT})
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="packtrain-generate-") as scratch, torch.no_grad():
        tokenizer = make_tokenizer(Path(scratch))
        model = build(config, seed=0).eval()
        use_cpu_kernels(model)
        contenders = _contenders(model, tokenizer, config, Path(scratch), options)
        ids = torch.randint(3, VOCABULARY, (LONG,), generator=torch.Generator().manual_seed(0)).tolist()
        for number in range(options.rounds):
            names = list(contenders)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                _measure(name, contenders[name], ids, options.tokens, figures)
            figures.setdefault("read rate", []).append(_read_rate())
            figures.setdefault("sixteen", []).append(_sixteen(model, tokenizer, ids, options.tokens))
            print(
                f"round {number + 1}: { {name: round(values[-1], 3) for name, values in figures.items()} }",
                file=sys.stderr,
            )
    report = _summary(figures, config, options)
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="110m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of a text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out: transformers, llama.cpp")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def _contenders(
    model: Llama, tokenizer: Tokenizer, config: ModelConfig, scratch: Path, options: argparse.Namespace
) -> dict[str, Timed]:
    contenders = {OURS: _ours(model, tokenizer)}
    if "transformers" not in options.without:
        contenders["transformers"] = _transformers(model, config)
    if "llama.cpp" not in options.without:
        contenders["llama.cpp"] = _llama_cpp(model, config, scratch, options.threads)
    for name in NARROW:
        narrow = build(config, seed=0).eval()
        use_cpu_kernels(narrow)
        narrow_weights(narrow, "int8" if name.endswith("int8") else "bfloat16")
        contenders[name] = _ours(narrow, tokenizer)
    return contenders


def _measure(name: str, run: Timed, ids: list[int], num_tokens: int, figures: dict[str, list[float]]) -> None:
    for what, prompt, count in (("decode", ids[:SHORT], num_tokens), ("prefill", ids, 1)):
        # The others' threads have gone to sleep by then.
        time.sleep(0.3)
        began = time.process_time()
        first, others = run(prompt, count)
        spent = time.process_time() - began
        value = (count - 1) / others if what == "decode" else first
        figures.setdefault(f"{what} {name}", []).append(value)
        # transformers reads the prompt twice, of which once for `first`.
        is_twice = name == "transformers" and what == "decode"
        figures.setdefault(f"{what}-processor {name}", []).append(spent / (count + 1 if is_twice else count))


def _ours(model: Llama, tokenizer: Tokenizer) -> Timed:
    engine = Engine(model, tokenizer, context_length=CONTEXT)

    def run(prompt: list[int], num_tokens: int) -> tuple[float, float]:
        start = time.perf_counter()
        stream = engine.add(prompt, _greedy(num_tokens))
        while not stream.token_ids:
            engine.step()
        first = time.perf_counter()
        while stream.finish_reason is None:
            engine.step()
        return first - start, time.perf_counter() - first

    return run


def _greedy(num_tokens: int) -> GenerateSettings:
    return GenerateSettings(temperature=0.0, max_tokens=num_tokens, min_tokens=num_tokens)


def _sixteen(model: Llama, tokenizer: Tokenizer, ids: list[int], num_tokens: int) -> float:
    engine = Engine(model, tokenizer, slots=16, context_length=SHORT + num_tokens)
    for i in range(16):
        engine.add(ids[i : i + SHORT], _greedy(num_tokens))
    while any(len(stream.token_ids) == 0 for stream in engine.streams):
        engine.step()
    before = sum(len(stream.token_ids) for stream in engine.streams)
    start = time.perf_counter()
    while engine.streams:
        engine.step()
    return (16 * num_tokens - before) / (time.perf_counter() - start)


def _transformers(model: Llama, config: ModelConfig) -> Timed:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        theirs = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=CONTEXT,
                rms_norm_eps=config.rms_norm_eps,
                tie_word_embeddings=config.tie_word_embeddings,
                pad_token_id=0,
                eos_token_id=2,
            )
        )
    # The same weights in the same memory.
    theirs.load_state_dict(model.state_dict(), strict=True, assign=True)
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    theirs.eval()

    def generate(prompt: list[int], num_tokens: int) -> float:
        tokens = torch.tensor([prompt])
        start = time.perf_counter()
        theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
        )
        return time.perf_counter() - start

    def run(prompt: list[int], num_tokens: int) -> tuple[float, float]:
        first = generate(prompt, 1)
        return first, generate(prompt, num_tokens) - first if num_tokens > 1 else 0.0

    return run


def _llama_cpp(model: Llama, config: ModelConfig, scratch: Path, threads: int) -> Timed:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(_write_gguf(model, config, scratch / "model.gguf"))
    params.n_ctx, params.n_parallel, params.warmup = CONTEXT, 1, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity, params.fit_params, params.n_gpu_layers = 0, False, 0
    with _quiet():
        server = xllamacpp.Server(params)

    def run(prompt: list[int], num_tokens: int) -> tuple[float, float]:
        # It counts the first token to the prompt.
        asked = {"prompt": prompt, "n_predict": num_tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        timings = server.handle_completions(asked)["timings"]
        return timings["prompt_ms"] / 1e3, max(timings["predicted_ms"], 1e-9) / 1e3

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """llama.cpp writes its log to standard error by itself."""
    import os

    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _names() -> list[str]:
    return ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(VOCABULARY - 3))]


def make_tokenizer(scratch: Path) -> Tokenizer:
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as RawTokenizer

    raw = RawTokenizer(models.WordLevel({name: i for i, name in enumerate(_names())}, unk_token="<unk>"))
    raw.add_special_tokens([AddedToken(name, special=True) for name in _names()[:3]])
    raw.save(str(scratch / "tokenizer.json"))
    return load_tokenizer(scratch)


def _write_gguf(model: Llama, config: ModelConfig, path: Path) -> Path:
    """The weights as float32, with rows of q and k in llama.cpp's order of rotary pairs."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    H, G, K = config.num_attention_heads, config.kv_heads, config.head_size
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(H)
    writer.add_head_count_kv(G)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(K)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(_names())
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([2, 3, 3, *([1] * (VOCABULARY - 3))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if "q_proj" in name or "k_proj" in name:
            tensor = tensor.view(H if "q_proj" in name else G, 2, K // 2, -1).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _read_rate() -> float:
    """Bytes of memory that this process reads in a second, with all its threads, by torch's sum."""
    numbers = torch.ones(2**27)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - start)
    return numbers.nbytes / min(times[1:]) / 1e9


def _summary(figures: dict[str, list[float]], config: ModelConfig, options: argparse.Namespace) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in figures.items()}
    D, K, F = config.hidden_size, config.head_size, config.intermediate_size
    of_layer = (2 * config.num_attention_heads + 2 * config.kv_heads) * K * D + 3 * D * F
    weights = config.num_hidden_layers * of_layer + VOCABULARY * D
    ratios = {}
    for what in ("decode", "prefill", "decode-processor", "prefill-processor"):
        for name in figures:
            kind, _, other = name.partition(" ")
            if kind != what or other == OURS:
                continue
            pairs = zip(figures[f"{what} {OURS}"], figures[name], strict=True)
            each = [ours / theirs if what == "decode" else theirs / ours for ours, theirs in pairs]
            ratios[name] = {"median": statistics.median(each), "least": min(each), "most": max(each)}
    ratios["sixteen"] = {"median": medians["sixteen"] / medians[f"decode {OURS}"]}
    return {
        "shape": options.shape,
        "cpu": cpu_name(),
        "threads": options.threads,
        "torch": torch.__version__,
        "weights_read": weights,
        "medians": medians,
        "share_of_read_rate": medians[f"decode {OURS}"] * weights * 4 / 1e9 / medians["read rate"],
        "ratios": ratios,
        "rounds": figures,
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{report['shape']}, {report['threads']} threads, float32 but where it says otherwise, {report['cpu']}")
    for name, value in report["medians"].items():
        unit = "s" if name.startswith(("prefill", "decode-")) else "GB/s" if name == "read rate" else "tokens/s"
        print(f"  {name:<28}{value:9.3f} {unit}")
    print(f"  decoding reads memory at {report['share_of_read_rate']:.0%} of its rate")
    for name, ratio in report["ratios"].items():
        spread = f" ({ratio['least']:.2f} to {ratio['most']:.2f})" if "least" in ratio else ""
        print(f"  packtrain is {ratio['median']:.2f} times {name}{spread}")


if __name__ == "__main__":
    main()
