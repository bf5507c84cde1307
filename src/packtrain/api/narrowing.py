"""Decides how a model's weights are made narrower for generation, and what that costs in bits per byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packtrain.errors import ConfigError, DatasetError, DeviceError, TokenizerError

if TYPE_CHECKING:
    from packtrain.model.llama import Llama
    from packtrain.runs.checkpoint import OpenRun

# The same tokens before and after, so that a small difference shows on few of them.
_TOKENS = 2048


@dataclass(frozen=True)
class Narrowing:
    """What narrower weights save and cost."""

    weights: str
    bytes_before: int
    bytes_after: int
    bits_per_byte_before: float | None
    """On `num_tokens` of the run's validation text; None if there is none, for the reason in `not_measured`."""
    bits_per_byte_after: float | None
    num_tokens: int
    not_measured: str | None = None


def narrow(model: Llama, weights: str, run: OpenRun | None = None) -> Narrowing | None:
    """Holds a model's weights as `weights` (bfloat16 or int8) in place, and measures the cost on text of its run.

    None for float32. Raises ConfigError for another name, and DeviceError for a model that is not on the CPU.
    """
    from packtrain.generate.weights import WEIGHTS, narrow_weights

    kind = next((known for known in WEIGHTS if known == weights), None)
    if kind is None:
        raise ConfigError(f"--weights {weights} is unknown; write one of {', '.join(WEIGHTS)}")
    if kind == "float32":
        return None
    device = model.lm_head.weight.device.type
    if device != "cpu":
        raise DeviceError(f"--weights {weights} works on the CPU only, and the model is on {device}; leave it out")
    reason, before, after, num_tokens = None, None, None, 0
    bytes_before = _num_bytes(model)
    try:
        if run is None:
            raise DatasetError("a model from elsewhere has no validation text")
        before, num_tokens = _bits_per_byte(run)
    except (DatasetError, TokenizerError) as error:
        reason = str(error)
    narrow_weights(model, kind)
    if before is not None and run is not None:
        after, _ = _bits_per_byte(run)
    return Narrowing(weights, bytes_before, _num_bytes(model), before, after, num_tokens, reason)


def _num_bytes(model: Llama) -> int:
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensors.values())


def _bits_per_byte(run: OpenRun) -> tuple[float, int]:
    """Of the run's model on a little of its validation text, and the number of tokens."""
    from packtrain.data.tokens.tokenizer import load_tokenizer
    from packtrain.evaluate.held_out import choose_parts, combine
    from packtrain.evaluate.loss import evaluate_rows
    from packtrain.evaluate.measure import open_evaluation_data

    data = run.config.data
    sources = open_evaluation_data(run)
    parts = choose_parts(sources, data.seq_len, data.packing, load_tokenizer(run.tokenizer_folder), _TOKENS)
    if not parts:
        raise DatasetError(f"{sources.name} has no validation split")
    results = []
    for part in parts:
        nats = evaluate_rows(run.model, part.held_out, micro_batch_size=1, document_mask=data.document_mask)
        assert nats is not None, "without should_stop, evaluation cannot stop early"
        results.append(part.held_out.result(nats))
    whole = combine([part.share for part in parts], results)
    return whole.bits_per_byte, whole.num_tokens
