"""Decides whether a GGUF file is the same model: llama.cpp loads it, and gives log-probabilities, greedy text and token ids.

Letters: P positions, N tokens at a position, V vocabulary.
"""

import importlib.metadata
import importlib.util
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from packtrain.data.tokens.visible import printable
from packtrain.errors import ExportError
from packtrain.export import compare
from packtrain.export.format import Checks, Subject
from packtrain.export.gguf import llamacpp
from packtrain.export.gguf.tokenizer import LlamaCppTokenizer, describe_tokenizer
from packtrain.export.gguf.write import file_name, read_back

TOLERANCES = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.25, "q8_0": 0.8}
"""The largest difference of a log-probability that is allowed, for logits of standard deviation 1.

Four to seven times the largest that models of 2 to 32 layers showed: 1.4e-5, 0.0072, 0.056 and 0.20 (docs/exporting.md).
"""
INSTALL = "pip install 'packtrain[gguf]'"
_CONTEXT = 256
_POSITIONS = 16
"""Of each row; each is a request of its own."""
_TOP = 2048
_MOST_GREEDY_PARAMETERS = 200_000_000
_NORMALIZES = "the tokenizer brings texts into the Unicode form {form}, and llama.cpp does not: ids are equal for texts in that form"


class Position(NamedTuple):
    """What llama.cpp said of the token after a position: its likeliest tokens."""

    row: int
    position: int
    ids_N: Tensor
    logprobs_N: Tensor


def examine(subject: Subject) -> None:
    """Raises ExportError if gguf or llama.cpp is not installed, or has no such model."""
    for name in ("gguf", "xllamacpp"):
        if importlib.util.find_spec(name) is None:
            raise ExportError(f"--format gguf needs {name}, which is not installed; run `{INSTALL}`")
    describe_tokenizer(subject.conditions, subject.config.vocab_rows)
    scaling = subject.config.rope_scaling
    if subject.config.qk_norm and scaling is not None and scaling.rope_type == "llama3":
        raise ExportError(
            "llama.cpp has no Qwen3 (model.qk_norm) whose rotary embedding is stretched as in Llama 3.1; write --format hf"
        )


def check(subject: Subject, folder: Path, dataset: Path | None) -> Checks:
    """Asks llama.cpp about the file, and compares. Raises ExportError for the first difference.

    llama.cpp multiplies with activations that are rounded to the type of the weights. The tolerance of a type is for that:
    our model has the weights that read back from the file, and computes in float32.
    """
    dtype, tokenizer = subject.choices.dtype, describe_tokenizer(subject.conditions, subject.config.vocab_rows)
    sample = compare.sample_tokens(subject, dataset)
    is_greedy = dtype == "float32" and subject.num_parameters <= _MOST_GREEDY_PARAMETERS
    prompts, num_new = compare.greedy_prompts(subject, sample.tokens_BT) if is_greedy else ([], 1)
    texts = [tokenizer.normalize(text) for text in _texts(subject)]
    places = _places(sample.tokens_BT)
    answer = _ask(
        folder / file_name(dtype),
        {
            "prefixes": [sample.tokens_BT[row, : position + 1].tolist() for row, position in places],
            "plain": subject.conditions.tokenizer.encode("a")[-1],
            "top": min(_TOP, subject.config.vocab_rows),
            "prompts": prompts,
            "num_new": num_new,
            "texts": texts,
            "ids": [subject.conditions.tokenizer.encode(text) for text in texts],
        },
    )
    _compare_tokenizers(subject, tokenizer, texts, answer)
    found = [
        Position(
            row,
            position,
            torch.tensor(said["ids"]),
            torch.tensor([math.nan if x is None else x for x in said["logprobs"]]),
        )
        for (row, position), said in zip(places, answer["positions"], strict=True)
    ]
    round_weight = None if dtype == "float32" else lambda _name, weight: read_back(weight, dtype)
    exact_BTV = compare.logits_of(subject.model, sample.tokens_BT)
    stored_BTV = compare.logits_of(compare.rounded(subject.model, round_weight), sample.tokens_BT)
    tolerance = TOLERANCES[dtype] * max(1.0, float(stored_BTV.std(-1).mean()))
    difference = _compare_positions(subject, stored_BTV.log_softmax(-1), found, tolerance)
    num_greedy = compare.compare_greedy(subject, prompts, answer["greedy"], tolerance) if is_greedy else None
    return Checks(
        reader=f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})",
        max_logit_difference=difference,
        tolerance=tolerance,
        num_tokens=len(places),
        text=sample.text,
        loss=_mean_loss(sample, [_ours(position, exact_BTV.log_softmax(-1)) for position in found]),
        loss_exported=_mean_loss(sample, found),
        num_strings=len(texts),
        num_greedy=num_greedy,
        remarks=() if tokenizer.unicode_form is None else (_NORMALIZES.format(form=tokenizer.unicode_form),),
    )


def _texts(subject: Subject) -> list[str]:
    return [*compare.STRINGS, *compare.forged_strings(subject.conditions.tokenizer)]


def _places(tokens_BT: Tensor) -> list[tuple[int, int]]:
    """Rows and positions to compare at, from the first to the last but one of each row: the last has no next token."""
    B, T = tokens_BT.shape
    positions = torch.linspace(0, max(0, T - 2), min(_POSITIONS, max(1, T - 1))).long().tolist()
    return [(row, position) for row in range(B) for position in sorted(set(positions))]


def _ask(file: Path, questions: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp says of the file, in a process of its own. Raises ExportError if it cannot load it."""
    request = questions | {"model": str(file), "context": _CONTEXT, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory(prefix="packtrain-gguf-") as scratch:
        asked, answered, said = (Path(scratch) / name for name in ("request.json", "answer.json", "said.txt"))
        asked.write_text(json.dumps(request), encoding="utf-8")
        # -P: the folder of that file has modules that are named as others are.
        command = [sys.executable, "-P", str(llamacpp.__file__), str(asked), str(answered)]
        with said.open("wb") as log:
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log) as process:
                try:
                    process.wait()
                finally:
                    process.kill()
        if answered.is_file():
            return dict(json.loads(answered.read_text(encoding="utf-8")))
        raise ExportError(
            f"llama.cpp cannot load the export ({_last_words(said, process.returncode)}); nothing was exported"
        )


def _last_words(said: Path, code: int) -> str:
    """Why llama.cpp ended: the last line that it printed about an error, in one line."""
    lines = [" ".join(line.split()) for line in said.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line for line in lines if re.search("error|failed|invalid|unknown|mismatch", line, re.IGNORECASE)]
    return printable((errors or [line for line in lines if line] or [f"its process ended with {code}"])[0])[:300]


def _compare_tokenizers(
    subject: Subject, tokenizer: LlamaCppTokenizer, texts: list[str], answer: dict[str, Any]
) -> None:
    first, ours = compare.first_ids(subject), subject.conditions.tokenizer
    for text, ids, decoded in zip(texts, answer["encoded"], answer["decoded"], strict=True):
        expected = ours.encode(text)
        compare.compare_ids(text, [*first, *expected], ids, "llama.cpp")
        # Its server joins the texts of single tokens, and so keeps the space that comes before each text.
        shown = decoded.removeprefix(" ") if tokenizer.add_space_prefix else decoded
        compare.compare_decoded(text, ours.decode(expected), shown, "llama.cpp")


def _ours(position: Position, logprobs_BTV: Tensor) -> Position:
    """The same tokens at the same place, with our log-probabilities."""
    return position._replace(logprobs_N=logprobs_BTV[position.row, position.position, position.ids_N])


def _compare_positions(subject: Subject, logprobs_BTV: Tensor, found: list[Position], tolerance: float) -> float:
    """The largest difference. Raises ExportError, which says where, for the first position where one exceeds `tolerance`."""
    largest, failure = 0.0, None
    for position in found:
        ours_N = _ours(position, logprobs_BTV).logprobs_N
        differences_N = (position.logprobs_N - ours_N).abs().nan_to_num(nan=math.inf)
        worst = int(differences_N.argmax())
        largest = max(largest, float(differences_N[worst]))
        if failure is None and float(differences_N[worst]) > tolerance:
            token = compare.name_token(subject.conditions.tokenizer, int(position.ids_N[worst]))
            failure = (
                f"first at position {position.position} of row {position.row}, most for {token}: "
                f"{float(position.logprobs_N[worst]):.4f} instead of {float(ours_N[worst]):.4f}"
            )
    if failure is not None:
        hint = "; try --dtype float32" if subject.choices.dtype != "float32" else ""
        raise ExportError(
            f"llama.cpp's log-probabilities differ from the model's by up to {largest:.2e}, but only {tolerance:.0e} is allowed; "
            f"{failure}; nothing was exported{hint}"
        )
    return largest


def _mean_loss(sample: compare.ComparedTokens, found: list[Position]) -> float:
    """Nats per token over the positions whose next token is among those that llama.cpp listed."""
    losses = [
        -float(position.logprobs_N[position.ids_N == sample.tokens_BT[position.row, position.position + 1]])
        for position in found
        if bool((position.ids_N == sample.tokens_BT[position.row, position.position + 1]).any())
    ]
    return sum(losses) / max(1, len(losses))
