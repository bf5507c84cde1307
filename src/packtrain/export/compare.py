"""Decides when a model that was read back is the one that was written: which tokens are compared, how closely, and what is said.

Letters: B rows, T tokens, V vocabulary, P positions, N tokens at a position.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from packtrain.data.format.content import check_content
from packtrain.data.format.shards import open_dataset
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.data.tokens.visible import printable
from packtrain.errors import DatasetChangedError, DatasetError, ExportError, TokenizerError
from packtrain.export.format import Subject
from packtrain.model.llama import Llama
from packtrain.pretrained.vocabulary import STRINGS
from packtrain.runs.manifest import list_datasets

VALIDATION, BUILT_IN = "validation split", "built-in prompts"
LOSS_TOLERANCE = 1e-5
NUM_GREEDY = 20
_ROWS, _ROW_TOKENS = 4, 128
_PROMPT_TOKENS, _NEW_TOKENS = 8, 24

Round = Callable[[str, Tensor], Tensor]
"""A weight by its name, as it reads back once it was stored."""


class ComparedTokens(NamedTuple):
    """Rows of token ids [B, T] to compare on, and where they are from."""

    tokens_BT: Tensor
    text: str


def sample_tokens(subject: Subject, dataset: Path | None) -> ComparedTokens:
    """The first rows of a dataset's validation split; texts of our own if the dataset is not the run's, or of another tokenizer."""
    tokenizer, length = subject.conditions.tokenizer, min(_ROW_TOKENS, subject.conditions.context_length)
    known = None if subject.run is None else [source["hash"] for source in list_datasets(subject.run.manifest)]
    if dataset is not None:
        with contextlib.suppress(DatasetError, DatasetChangedError, TokenizerError, OSError):
            opened = open_dataset(dataset)
            split = opened.split("validation")
            rows = min(_ROWS, split.num_tokens // length)
            manifest = opened.manifest
            is_fit = manifest.tokenizer.hash == tokenizer.hash if known is None else manifest.hash in known
            if is_fit and rows > 0:
                check_content(opened, "sample", sides=("validation",))
                ids = split.read(0, rows * length).astype("int64")
                return ComparedTokens(torch.from_numpy(ids).view(rows, length), VALIDATION)
    ids_T = [i for text in STRINGS for i in tokenizer.encode(text)]
    rows = max(1, min(_ROWS, len(ids_T) // length))
    return ComparedTokens(torch.tensor(ids_T[: rows * length]).view(rows, -1), BUILT_IN)


@torch.no_grad()
def rounded(model: Llama, round_weight: Round | None) -> Llama:
    """A copy of the model with the weights that read back from the files; the model itself if they do not change."""
    if round_weight is None:
        return model
    copied = copy.deepcopy(model)
    for name, parameter in copied.named_parameters():
        parameter.copy_(round_weight(name, parameter.detach().cpu()))
    return copied


@torch.no_grad()
def logits_of(model: Any, tokens_BT: Tensor) -> Tensor:
    """Logits [B, T, V] of a model of ours or of transformers, in float32 on the CPU."""
    result = model(tokens_BT.to(next(model.parameters()).device))
    return (result if isinstance(result, Tensor) else result.logits).float().cpu()


def mean_loss(logits_BTV: Tensor, tokens_BT: Tensor) -> float:
    """Nats per token of each row's tokens after its first."""
    return float(F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()))


def compare_logits(
    expected_BTV: Tensor, actual_BTV: Tensor, tokenizer: Tokenizer, tolerance: float, hint: str = ""
) -> float:
    """The largest difference. Raises ExportError, which says where the first too large one is, if it exceeds `tolerance`."""
    if actual_BTV.shape != expected_BTV.shape:
        raise ExportError(
            f"the reloaded model's logits have the shape {list(actual_BTV.shape)} and the run's {list(expected_BTV.shape)}; "
            "nothing was exported"
        )
    differences_BTV = (actual_BTV - expected_BTV).abs()
    largest = float(differences_BTV.max())
    if largest <= tolerance:
        return largest
    row, position = (int(i) for i in (~(differences_BTV.amax(-1) <= tolerance)).nonzero()[0])
    token = int(differences_BTV[row, position].nan_to_num(nan=float("inf")).argmax())
    ours, theirs = (float(logits[row, position, token]) for logits in (expected_BTV, actual_BTV))
    raise ExportError(
        f"the reloaded model's logits differ from the run's by up to {largest:.2e}, but only {tolerance:.0e} is allowed; first at "
        f"position {position} of row {row}, most for {name_token(tokenizer, token)}: {theirs:.4f} instead of {ours:.4f}; nothing "
        f"was exported{hint}"
    )


def compare_losses(expected: float, actual: float, tolerance: float = LOSS_TOLERANCE) -> None:
    """Raises ExportError if the losses differ by more than `tolerance` of the expected one, or of 1 nat."""
    if not abs(actual - expected) <= tolerance * max(1.0, expected):
        raise ExportError(
            f"the reloaded model's loss is {actual:.6f} and the run's {expected:.6f}; nothing was exported"
        )


def greedy_prompts(subject: Subject, tokens_BT: Tensor) -> tuple[list[list[int]], int]:
    """NUM_GREEDY prompts of equal length, cut from `tokens_BT`, and how many tokens to continue each by."""
    first = first_ids(subject)
    flat = tokens_BT.flatten()
    room = subject.conditions.context_length - len(first)
    length = min(_PROMPT_TOKENS, max(1, room // 2), flat.numel())
    starts = torch.linspace(0, flat.numel() - length, NUM_GREEDY).long().tolist()
    prompts = [first + flat[start : start + length].tolist() for start in starts]
    return prompts, max(1, min(_NEW_TOKENS, room - length))


def compare_greedy(
    subject: Subject, prompts: list[list[int]], continued: Sequence[Sequence[int]], tolerance: float
) -> int:
    """Compares greedy continuations of prompts, and gives their number. Raises ExportError for the first that differs.

    One may have ended early, at a control token. One pass of our model over prompt and continuation shows what it would
    have chosen at each position. Two tokens whose logits differ by less than `tolerance` are equally likely.
    """
    rows = [[*prompt, *new] for prompt, new in zip(prompts, continued, strict=True)]
    longest = max(map(len, rows))
    # Causal: what follows a position cannot change it.
    logits_BTV = logits_of(subject.model, torch.tensor([row + [0] * (longest - len(row)) for row in rows]))
    for number, (prompt, new) in enumerate(zip(prompts, continued, strict=True)):
        for position, token in enumerate(new, len(prompt) - 1):
            scores_V = logits_BTV[number, position]
            best = int(scores_V.argmax())
            if float(scores_V[best] - scores_V[token]) > tolerance:
                tokenizer = subject.conditions.tokenizer
                raise ExportError(
                    f"greedy text of prompt {number + 1} of {len(prompts)} differs at position {position + 1}: the reloaded model "
                    f"continues with {name_token(tokenizer, token)}, and the run's with {name_token(tokenizer, best)}; nothing was "
                    "exported"
                )
    return len(prompts)


def name_token(tokenizer: Tokenizer, token: int) -> str:
    """A token for a message: its id and how it is written."""
    spelling = tokenizer.raw.id_to_token(token) if token < tokenizer.vocab_size else None
    return f"token {token}" + ("" if spelling is None else f" ({printable(repr(spelling))[:40]})")


def first_ids(subject: Subject) -> list[int]:
    """What comes before the ids of a text: BOS, if documents began with it in training."""
    bos = subject.conditions.tokenizer.bos_id
    return [bos] if subject.conditions.add_bos and bos is not None else []


def compare_ids(
    text: str, expected: Sequence[int], actual: Sequence[int], reader: str = "the reloaded tokenizer"
) -> None:
    """Raises ExportError if a text's ids differ, and says where."""
    if list(actual) == list(expected):
        return
    same = next((i for i, (a, b) in enumerate(zip(actual, expected)) if a != b), min(len(actual), len(expected)))  # noqa: B905
    shown = [list(ids[same : same + 6]) for ids in (actual, expected)]
    raise ExportError(
        f"{reader} gives other ids for {printable(repr(text[:40]))}: from position {same} on {shown[0]}, but the run's tokenizer "
        f"gives {shown[1]}; nothing was exported"
    )


def compare_decoded(text: str, expected: str, actual: str, reader: str = "the reloaded tokenizer") -> None:
    """Raises ExportError if the ids of a text are decoded to another text."""
    if actual != expected:
        raise ExportError(
            f"{reader} decodes the ids of {printable(repr(text[:40]))} to a different text; nothing was exported"
        )


def forged_strings(tokenizer: Tokenizer) -> list[str]:
    """Texts with control tokens written in them, which training reads as text."""
    control = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    return [f"a{token}b {token}" for token in control if token is not None]
