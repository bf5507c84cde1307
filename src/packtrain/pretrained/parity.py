"""Decides whether a model from elsewhere has become the same model: its logits against those of the format's own reader."""

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from packtrain.config.libraries import quieten_torchao
from packtrain.errors import ModelError
from packtrain.model.llama import Llama
from packtrain.pretrained import llama_cpp
from packtrain.pretrained.files import Kind, ModelFiles, load_model
from packtrain.pretrained.gguf_header import read_header
from packtrain.pretrained.llama2c_plain import compute_logits

# Of the largest logit: float32 sums in another order differ by far less, a wrong rotation or norm by far more.
TOLERANCE = 1e-4
# Of log-probabilities: llama.cpp rounds activations to the type of the weights that they are multiplied with.
_TOLERANCES = {"F32": 1e-3, "F64": 1e-3, "F16": 2e-2, "BF16": 2e-1}
_ROWS, _ROW_TOKENS = 2, 64
_LIKELIEST = 1000
_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class Parity:
    """How far our numbers are from those of another program, over `num_tokens` tokens."""

    reference: str
    """The other program, with its version."""
    compared: Literal["logits", "log-probabilities"]
    max_difference: float
    tolerance: float
    """Most difference allowed."""
    num_tokens: int

    def describe(self) -> dict[str, Any]:
        """For a run's manifest."""
        return asdict(self)


class _Reference(NamedTuple):
    """What another program gives: logits [B, T, V], or log-probabilities of next tokens after some prompts, by id."""

    name: str
    logits_BTV: Tensor | None = None
    likeliest: Sequence[dict[int, float]] = ()
    prompts: Sequence[list[int]] = ()


def measure_parity(files: ModelFiles) -> Parity | None:
    """Compares our numbers with those of the format's own reader, both on the CPU. Raises ModelError if they differ.

    Hugging Face: transformers' logits. llama2.c: run.c's, in NumPy. GGUF: llama.cpp's log-probabilities, if xllamacpp is
    installed, or logits of transformers, which reads it through gguf; None, with a warning, if neither can. The tokens are ids
    from all over the vocabulary. Two models are in memory, one after the other.
    """
    tokens_BT = sample_tokens(files.config.vocab_rows, files.config.max_position_embeddings or _ROW_TOKENS)
    reference = _REFERENCES[files.kind](files, tokens_BT)
    if reference is None:
        return None
    model = load_model(files)
    if reference.logits_BTV is None:
        return _compare_likeliest(files, model, reference)
    ours_BTV = _logits(model, tokens_BT)
    if reference.logits_BTV.shape != ours_BTV.shape:
        raise ModelError(
            f"{files.path}: {reference.name} gives logits of shape {list(reference.logits_BTV.shape)} and packtrain "
            f"{list(ours_BTV.shape)}; the files are not what they say"
        )
    difference, largest = (float(each.abs().max()) for each in (ours_BTV - reference.logits_BTV, reference.logits_BTV))
    return _judge(files, Parity(reference.name, "logits", difference, TOLERANCE * max(1.0, largest), tokens_BT.numel()))


def _compare_likeliest(files: ModelFiles, model: Llama, reference: _Reference) -> Parity:
    difference = 0.0
    for prompt, likeliest in zip(reference.prompts, reference.likeliest, strict=True):
        ours_V = _logits(model, torch.tensor([prompt]))[0, -1].log_softmax(-1)
        difference = max(difference, *(abs(float(ours_V[index]) - value) for index, value in likeliest.items()))
    allowed = max(_TOLERANCES[each.type] for each in read_header(files.files[0]).tensors.values())
    num_tokens = sum(map(len, reference.prompts))
    return _judge(files, Parity(reference.name, "log-probabilities", difference, allowed, num_tokens))


def _judge(files: ModelFiles, found: Parity) -> Parity:
    if not found.max_difference <= found.tolerance:
        raise ModelError(
            f"{files.path}: packtrain's {found.compared} differ from those of {found.reference} by up to "
            f"{found.max_difference:.2e}, and only {found.tolerance:.0e} is allowed, so it is not read as the same model; "
            "convert it again, or to another format"
        )
    return found


def sample_tokens(vocab_rows: int, context_length: int) -> Tensor:
    """Ids [B, T] spread over the vocabulary, always the same."""
    T = min(_ROW_TOKENS, context_length)
    # Knuth's multiplicative hash.
    return (torch.arange(_ROWS * T) * 2_654_435_761 % 2**32 % vocab_rows).reshape(_ROWS, T)


@torch.no_grad()
def _logits(model: Llama, tokens_BT: Tensor) -> Tensor:
    return model(tokens_BT).float()


def _ask_transformers(files: ModelFiles, tokens_BT: Tensor) -> _Reference:
    # transformers imports torchao if it is installed.
    quieten_torchao()
    import transformers

    name = f"transformers {transformers.__version__}"
    options: dict[str, Any] = {"use_safetensors": True}
    folder = files.path
    if files.kind == "GGUF":
        options, folder = {"gguf_file": files.files[0].name}, files.files[0].parent
    with quiet_transformers():
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, **options
            )
            with torch.no_grad():
                return _Reference(name, model.eval()(tokens_BT).logits.float())
        # Whatever it raises, it cannot read what we have read.
        except Exception as error:  # noqa: BLE001
            raise _cannot_read(files, name, error) from None


def _ask_llama_cpp(files: ModelFiles, tokens_BT: Tensor) -> _Reference | None:
    version = llama_cpp.find_version()
    if version is None:
        is_plain = files.config.rope_scaling is None and not files.config.qk_norm
        if importlib.util.find_spec("gguf") is not None and is_plain:
            return _ask_transformers(files, tokens_BT)
        _log.warning(
            "%s is not compared with another program's reading of it, because none is installed; run `pip install xllamacpp`",
            files.path,
        )
        return None
    name = f"llama.cpp (xllamacpp {version})"
    row, T = tokens_BT[0].tolist(), tokens_BT.shape[1]
    # Shorter than the context, because llama.cpp adds a token.
    prompts = [row[:length] for length in sorted({min(T, 3), max(1, T // 2), max(1, T - 1)})]
    try:
        plain_id = files.conditions().tokenizer.encode("a")[-1]
        likeliest = llama_cpp.measure(files.files[0], prompts, min(_LIKELIEST, files.config.vocab_rows), plain_id)
    except ValueError as error:
        raise _cannot_read(files, name, error) from None
    return _Reference(name, likeliest=likeliest, prompts=prompts)


def _compute_plain(files: ModelFiles, tokens_BT: Tensor) -> _Reference:
    rows = [torch.from_numpy(compute_logits(files.files[0], ids_T.numpy())) for ids_T in tokens_BT]
    return _Reference("run.c's computation in NumPy", torch.stack(rows))


def _cannot_read(files: ModelFiles, name: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:200]
    return ModelError(f"{files.path}: {name} cannot read it ({reason}), so it cannot be compared; convert it again")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars and advice, which would interrupt our output."""
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


_REFERENCES: dict[Kind, Callable[[ModelFiles, Tensor], _Reference | None]] = {
    "Hugging Face folder": _ask_transformers,
    "GGUF": _ask_llama_cpp,
    "llama2.c": _compute_plain,
}
