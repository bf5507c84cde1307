"""Decides how a model's weights are made narrower for generation, and what that costs in bits per byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packtrain.errors import ConfigError, DatasetError, DeviceError, TokenizerError

if TYPE_CHECKING:
    from packtrain.data.feed.datasets import RunDatasets
    from packtrain.evaluate.loss import LossResult
    from packtrain.generate.weights import Weights
    from packtrain.model.llama import Llama
    from packtrain.pretrained.open import OpenModel

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


def narrow(opened: OpenModel, weights: str) -> Narrowing | None:
    """Holds a model's weights as `weights` (bfloat16 or int8) in place, and measures the cost on validation text of its run.

    An export knows where the dataset of its run was. None for float32. Raises ConfigError for another name, and DeviceError
    for a model that is not on the CPU.
    """
    from packtrain.evaluate.measure import open_data_to_measure
    from packtrain.generate.weights import narrow_weights

    kind = check_weights(weights)
    if kind == "float32":
        return None
    model = opened.model
    device = model.lm_head.weight.device.type
    if device != "cpu":
        raise DeviceError(f"--weights {weights} works on the CPU only, and the model is on {device}; leave it out")
    sources, reason, before, after = None, None, None, None
    bytes_before = _num_bytes(model)
    try:
        sources = open_data_to_measure(opened)
        before = _measure(opened, sources)
    except (DatasetError, TokenizerError) as error:
        # What to do about it is for another command.
        reason = str(error).partition(";")[0]
    narrow_weights(model, kind)
    if before is not None and sources is not None:
        after = _measure(opened, sources)
    return Narrowing(
        weights,
        bytes_before,
        _num_bytes(model),
        None if before is None else before.bits_per_byte,
        None if after is None else after.bits_per_byte,
        0 if before is None else before.num_tokens,
        reason,
    )


def check_weights(weights: str) -> Weights:
    """Raises ConfigError for a name that is not one of the ways to hold weights."""
    from packtrain.generate.weights import WEIGHTS

    kind = next((known for known in WEIGHTS if known == weights), None)
    if kind is None:
        raise ConfigError(f"--weights {weights} is unknown; write one of {', '.join(WEIGHTS)}")
    return kind


def device_for(weights: str) -> str:
    """The device to open a model on that will be narrowed: narrow weights are read by the CPU's own step."""
    return "auto" if check_weights(weights) == "float32" else "cpu"


def describe_narrowing(found: Narrowing) -> str:
    """What narrower weights save and cost, as one sentence."""
    saved = f"{found.weights}: {found.bytes_after / 1e6:,.1f} MB of weights, {found.bytes_before / 1e6:,.1f} in float32"
    if found.bits_per_byte_before is None or found.bits_per_byte_after is None:
        return f"{saved}; the cost is not measured: {found.not_measured}"
    return (
        f"{saved}; {found.bits_per_byte_after:.4f} bits per byte on {found.num_tokens:,} tokens of validation text, "
        f"{found.bits_per_byte_before:.4f} in float32"
    )


def _num_bytes(model: Llama) -> int:
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensors.values())


def _measure(opened: OpenModel, sources: RunDatasets) -> LossResult:
    """The model's loss on a little of the validation text: on rows of a run, on documents of another model."""
    from packtrain.evaluate.measure import measure_rows
    from packtrain.evaluate.measure_documents import measure_loss

    if opened.run is not None:
        return measure_rows(opened.run, sources, _TOKENS)
    return measure_loss(opened, sources, _TOKENS)
