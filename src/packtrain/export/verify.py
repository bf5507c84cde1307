"""Decides whether a Hugging Face folder is the same model: reloads it as a user would, and compares logits and token ids."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F

from packtrain.config.libraries import quieten_torchao
from packtrain.data.format.content import check_content
from packtrain.data.format.shards import open_dataset
from packtrain.errors import DatasetChangedError, DatasetError, ExportError, TokenizerError
from packtrain.export.format import Checks, Subject
from packtrain.model.llama import Llama
from packtrain.pretrained.conditions import Conditions
from packtrain.runs.manifest import list_datasets

LOGIT_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-5
_ROWS, _ROW_TOKENS = 4, 128

STRINGS = (
    "Hello, world!",
    " two  spaces before,  and   runs   inside ",
    "def f(x):\n\treturn x ** 2  # tab\r\n\n\n",
    "Zürich, naïve café — “quotes” … ½ ≤ ∑",
    "北京 東京 서울 مرحبا עברית हिन्दी",
    "🙂👩‍👩‍👧🇨🇭 e\u0301 \u200b\u00a0\ufeff",
    "1234567890 3.14159 0x1F 10,000,000",
    "<html><body class='a'>&amp;</body></html> {\"k\": [1, null]}",
    "AaAaAa" * 20,
    "\n",
    " ",
    "a",
)
"""Compared by token ids and by decoded text."""


def check(subject: Subject, folder: Path, dataset: Path | None) -> Checks:
    """Reloads `folder` with transformers and compares it with the run's model. Raises ExportError if they differ.

    Both models compute logits and losses in float32. For bfloat16 and float16, a copy of the run's model is first rounded
    to that type, so that the stored values are compared without the noise of half-precision arithmetic. The copy is freed
    before the folder is reloaded, so that at most two models are in memory.
    `dataset`: a prepared dataset of the run, for its validation split.
    """
    tokens_BT, text = sample_tokens(subject, dataset)
    model = subject.run.model
    loss = _mean_loss(_logits(model, tokens_BT), tokens_BT)
    expected_BTV = _logits(_rounded(model, subject.dtype), tokens_BT)
    reloaded, tokenizer = _reload(folder)
    with _quiet():
        num_strings = compare_tokenizers(subject.conditions, tokenizer)
    actual_BTV = _logits(reloaded, tokens_BT)
    if actual_BTV.shape != expected_BTV.shape:
        raise ExportError(
            f"the reloaded model's logits have the shape {list(actual_BTV.shape)} and the run's {list(expected_BTV.shape)}; "
            "nothing was exported"
        )
    difference = float((actual_BTV - expected_BTV).abs().max())
    if not difference <= LOGIT_TOLERANCE:
        hint = "; try --dtype float32" if subject.dtype != torch.float32 else ""
        raise ExportError(
            f"the reloaded model's logits differ from the run's by up to {difference:.2e}, but only {LOGIT_TOLERANCE:.0e} is "
            f"allowed; nothing was exported{hint}"
        )
    expected_loss, loss_exported = _mean_loss(expected_BTV, tokens_BT), _mean_loss(actual_BTV, tokens_BT)
    if not abs(loss_exported - expected_loss) <= LOSS_TOLERANCE * max(1.0, expected_loss):
        raise ExportError(
            f"the reloaded model's loss is {loss_exported:.6f} and the run's {expected_loss:.6f}; nothing was exported"
        )
    return Checks(difference, LOGIT_TOLERANCE, tokens_BT.numel(), text, loss, loss_exported, num_strings)


def sample_tokens(subject: Subject, dataset: Path | None) -> tuple[Tensor, str]:
    """Rows of token ids [B, T] to compare on, and their source: the run's validation split or, without it, STRINGS."""
    length = min(_ROW_TOKENS, subject.conditions.context_length)
    known = [source["hash"] for source in list_datasets(subject.run.manifest)]
    if dataset is not None:
        with contextlib.suppress(DatasetError, DatasetChangedError, TokenizerError, OSError):
            opened = open_dataset(dataset)
            split = opened.split("validation")
            rows = min(_ROWS, split.num_tokens // length)
            if opened.manifest.hash in known and rows > 0:
                check_content(opened, "sample", sides=("validation",))
                ids = split.read(0, rows * length).astype("int64")
                return torch.from_numpy(ids).view(rows, length), "validation split"
    tokenizer = subject.conditions.tokenizer
    ids_T = [i for text in STRINGS for i in tokenizer.encode(text)]
    rows = max(1, min(_ROWS, len(ids_T) // length))
    return torch.tensor(ids_T[: rows * length]).view(rows, -1), "built-in prompts"


def compare_tokenizers(conditions: Conditions, theirs: Any) -> int:
    """Compares the ids and decoded text of many strings, and gives their number. Raises ExportError for the first difference.

    transformers reads control tokens that are written in a text, and training does not. Strings that contain them are
    therefore compared with `split_special_tokens=True`.
    """
    ours = conditions.tokenizer
    first = [ours.bos_id] if conditions.add_bos and ours.bos_id is not None else []
    control = [t for t in (ours.bos_token, ours.eos_token, ours.unk_token) if t is not None]
    plain: list[tuple[str, dict[str, bool]]] = [(text, {}) for text in STRINGS]
    forged = [(f"a{token}b {token}", {"split_special_tokens": True}) for token in control]
    for text, options in plain + forged:
        expected = [*first, *ours.encode(text)]
        actual = theirs(text, **options)["input_ids"]
        if actual != expected:
            raise ExportError(
                f"the reloaded tokenizer gives {actual[:12]} for {text[:40]!r}, but the run's gives {expected[:12]}; "
                "nothing was exported"
            )
        if theirs.decode(actual, skip_special_tokens=True) != ours.decode(expected):
            raise ExportError(
                f"the reloaded tokenizer decodes the ids of {text[:40]!r} to a different text; nothing was exported"
            )
    if (theirs.bos_token_id, theirs.eos_token_id) != (ours.bos_id, ours.eos_id):
        raise ExportError(
            f"the reloaded tokenizer's BOS and EOS are {theirs.bos_token_id} and {theirs.eos_token_id}, but the run's are "
            f"{ours.bos_id} and {ours.eos_id}; nothing was exported"
        )
    return len(plain + forged)


def _reload(folder: Path) -> tuple[Any, Any]:
    # transformers imports torchao if it is installed.
    quieten_torchao()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"transformers cannot load the export ({reason}); nothing was exported") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(problem):
            raise ExportError(
                f"transformers reports {problem} in the export: {sorted(report[problem])[:3]}; nothing was exported"
            )
    return model.eval(), tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' progress bars and advice, which would interrupt our output."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@torch.no_grad()
def _rounded(model: Llama, dtype: torch.dtype) -> Llama:
    """The model with float32 weights rounded to `dtype`; the model itself if `dtype` is float32."""
    if dtype == torch.float32:
        return model
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.copy_(parameter.to(dtype))
    return rounded


@torch.no_grad()
def _logits(model: Any, tokens_BT: Tensor) -> Tensor:
    result = model(tokens_BT.to(next(model.parameters()).device))
    return (result if isinstance(result, Tensor) else result.logits).float().cpu()


def _mean_loss(logits_BTV: Tensor, tokens_BT: Tensor) -> float:
    return float(F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()))
