"""Decides whether a model from elsewhere has become the same model: its logits against those of the format's own reader."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from packtrain.config.libraries import quieten_torchao
from packtrain.errors import ModelError
from packtrain.model.llama import Llama
from packtrain.pretrained.files import Kind, ModelFiles, load_model

# Of the largest logit: float32 sums in another order differ by far less, a wrong rotation or norm by far more.
TOLERANCE = 1e-4
_ROWS, _ROW_TOKENS = 2, 64
_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class Parity:
    """How far our logits are from those of another program, over all logits of `num_tokens` tokens."""

    reference: str
    """The other program, with its version."""
    max_logit_difference: float
    largest_logit: float
    tolerance: float
    """Most difference allowed."""
    num_tokens: int

    def describe(self) -> dict[str, Any]:
        """For a run's manifest."""
        return asdict(self)


def measure_parity(files: ModelFiles) -> Parity:
    """Compares our logits with those of the format's own reader, both in float32 on the CPU. Raises ModelError if they differ.

    The tokens are ids from all over the vocabulary. Two models are in memory, one after the other.
    """
    tokens_BT = sample_tokens(files.config.vocab_rows, files.config.max_position_embeddings or _ROW_TOKENS)
    ours_BTV = _logits(load_model(files), tokens_BT)
    reference, theirs_BTV = _REFERENCES[files.kind](files, tokens_BT)
    if theirs_BTV.shape != ours_BTV.shape:
        raise ModelError(
            f"{files.path}: {reference} gives logits of shape {list(theirs_BTV.shape)} and packtrain {list(ours_BTV.shape)}; "
            "the files are not what they say"
        )
    difference, largest = float((ours_BTV - theirs_BTV).abs().max()), float(theirs_BTV.abs().max())
    allowed = TOLERANCE * max(1.0, largest)
    if not difference <= allowed:
        raise ModelError(
            f"{files.path}: packtrain's logits differ from those of {reference} by up to {difference:.2e}, and only "
            f"{allowed:.0e} is allowed, so it is not read as the same model; convert it again, or to another format"
        )
    return Parity(reference, difference, largest, allowed, tokens_BT.numel())


def sample_tokens(vocab_rows: int, context_length: int) -> Tensor:
    """Ids [B, T] spread over the vocabulary, always the same."""
    T = min(_ROW_TOKENS, context_length)
    # Knuth's multiplicative hash.
    return (torch.arange(_ROWS * T) * 2_654_435_761 % 2**32 % vocab_rows).reshape(_ROWS, T)


@torch.no_grad()
def _logits(model: Llama, tokens_BT: Tensor) -> Tensor:
    return model(tokens_BT).float()


def _logits_of_transformers(files: ModelFiles, tokens_BT: Tensor) -> tuple[str, Tensor]:
    # transformers imports torchao if it is installed.
    quieten_torchao()
    import transformers

    name = f"transformers {transformers.__version__}"
    with _quiet():
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                files.path, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
            with torch.no_grad():
                return name, model.eval()(tokens_BT).logits.float()
        # Whatever it raises, it cannot read what we have read.
        except Exception as error:  # noqa: BLE001
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{files.path}: {name} cannot read it ({reason}), so it cannot be compared") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' progress bars and advice."""
    from transformers.utils import logging as messages

    verbosity, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    try:
        yield
    finally:
        messages.set_verbosity(verbosity)
        if bars:
            messages.enable_progress_bar()


_REFERENCES: dict[Kind, Callable[[ModelFiles, Tensor], tuple[str, Tensor]]] = {
    "Hugging Face folder": _logits_of_transformers,
}
