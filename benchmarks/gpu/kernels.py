"""Which kernels a device has, in which order torch prefers them, and what each does in a second, at the model's shapes."""

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.cases import read_preset
from benchmarks.gpu.timing import seconds_of_kernel
from packtrain.config.train import TrainConfig
from packtrain.model.chunks import chunk_rows
from packtrain.model.fp8 import what_is_missing
from packtrain.model.layers import Rotary, Rotation, rotate
from packtrain.model.loss import chunk_loss
from packtrain.plan.devices import peak_flops
from packtrain.runs.manifest import hardware
from packtrain.train.device import resolve_precision

Figures = dict[str, Any]
_LIBRARIES = ("transformers", "triton", "torchao", "bitsandbytes", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def machine(task: Figures, device: torch.device) -> Figures:
    """Versions, the order of kernels, the precision of training, and rates of matrix products in it."""
    is_cuda = device.type == "cuda"
    precision = resolve_precision(TrainConfig(), device)
    dtype = precision.dtype or torch.float32
    config = read_preset(task["preset"])
    D, intermediate, V = config.model.hidden_size, config.model.intermediate_size, config.model.vocab_rows
    size, tokens = 8192 if is_cuda else 1024, task["rows"] * config.data.seq_len
    chunk = min(tokens, chunk_rows(V, device.type))
    shapes = {
        f"{size} cubed": (size, size, size),
        "one of q, k, v, o": (tokens, D, D),
        "q, k, v in one": (tokens, D, 3 * D),
        "gate or up": (tokens, D, intermediate),
        "gate and up in one": (tokens, D, 2 * intermediate),
        "down": (tokens, intermediate, D),
        "gradient of gate's weight": (intermediate, tokens, D),
        "logits of a chunk": (chunk, D, V),
    }
    rates = {
        f"{name}, {m} × {k} × {n}": _product_rate(m, k, n, dtype, device) / 1e12 for name, (m, k, n) in shapes.items()
    }
    name = torch.cuda.get_device_name(device) if is_cuda else "CPU"
    peak = peak_flops(name)
    return {
        "memory_gb": hardware(device)["memory_bytes"] / 1e9,
        "precision": precision.name,
        "without_fp8": what_is_missing(device),
        "matmul": f"{dtype}".removeprefix("torch.") + f", {size} cubed",
        "matmul_tflops": next(iter(rates.values())),
        "peak_tflops": peak / 1e12 if peak else None,
        "versions": _versions(),
        "priority": _priority(),
        "products_tflops": rates,
    }


def attention(task: Figures, device: torch.device) -> Figures:
    """Milliseconds and TFLOP/s of causal attention at a head's width, forward alone and with its gradients, by kernel."""
    width, config = task["width"], read_preset(task["preset"])
    rows, T = task["kernel_rows"], config.data.seq_len
    heads = max(1, config.model.hidden_size // width)
    dtype = resolve_precision(TrainConfig(), device).dtype or torch.float32
    shape = (rows, T, heads, width)
    q, k, v, d_out = (torch.randn(shape, device=device, dtype=dtype).transpose(1, 2) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()
    # Two products of T × T × K by head, of which the causal mask leaves a half; five more for the gradients.
    flops = 2 * rows * heads * T * T * width
    figures: Figures = {"shape": f"{rows} × {heads} × {T} × {width}"}
    attend = functools.partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)

    def with_gradients() -> None:
        torch.autograd.grad(attend(), (q, k, v), d_out)

    for name, backend in _BACKENDS.items():
        with sdpa_kernel(backend):
            try:
                with torch.no_grad():
                    forward = seconds_of_kernel(attend, device)
                both = seconds_of_kernel(with_gradients, device)
            except RuntimeError as error:
                if "out of memory" in str(error):
                    raise
                figures[f"{name} missing"] = str(error).strip().partition("\n")[0][:120]
                continue
        figures |= {f"{name} forward ms": forward * 1e3, f"{name} forward and backward ms": both * 1e3}
        figures |= {f"{name} forward TFLOP/s": flops / forward / 1e12}
        figures |= {f"{name} forward and backward TFLOP/s": 3.5 * flops / both / 1e12}
    return figures


def rotary(task: Figures, device: torch.device) -> Figures:
    """Milliseconds of rotating queries: with sine and cosine computed in the kernel, and read from tables."""
    config = read_preset(task["preset"])
    T, model = config.data.seq_len, config.model
    dtype = resolve_precision(TrainConfig(), device).dtype or torch.float32
    shape = (task["kernel_rows"], T, model.num_attention_heads, model.head_size)
    x_BTHK = torch.randn(shape, device=device, dtype=dtype)
    angles, positions = Rotary(model), torch.arange(T, device=device)
    angles.move(device)
    tables = angles(positions)
    compiled = _compiler(task)
    forms: dict[str, Callable[[], Tensor]] = {
        "computed": functools.partial(compiled(lambda x, at: rotate(x, angles(at))), x_BTHK, positions),
        "tables": functools.partial(compiled(lambda x, cos, sin: rotate(x, Rotation(cos, sin))), x_BTHK, *tables),
    }
    return _compare(forms, device)


def loss(task: Figures, device: torch.device) -> Figures:
    """Milliseconds of a chunk of the loss with its gradient: the target taken off by a scatter, and by a comparison."""
    config = read_preset(task["preset"])
    V, D = config.model.vocab_rows, config.model.hidden_size
    rows = min(task["kernel_rows"] * config.data.seq_len, chunk_rows(V, device.type))
    dtype = resolve_precision(TrainConfig(), device).dtype or torch.float32
    hidden_CD = torch.randn(rows, D, device=device, dtype=dtype)
    weight_VD = torch.randn(V, D, device=device, dtype=dtype) / D**0.5
    target_C1 = torch.randint(V, (rows, 1), device=device)
    counts_C1 = torch.ones(rows, 1, dtype=torch.bool, device=device)
    arguments, compiled = (hidden_CD, weight_VD, target_C1, counts_C1, 0.0), _compiler(task)
    if not task["compiled"]:
        # Not compiled, the model's own form is the scatter, too.
        return {"rows": rows} | _compare({"scatter": lambda: chunk_loss(*arguments)[0]}, device)
    by_scatter, by_comparison = compiled(_scatter_loss), compiled(chunk_loss)
    forms: dict[str, Callable[[], Tensor]] = {
        "scatter": lambda: by_scatter(*arguments[:3])[0],
        "comparison": lambda: by_comparison(*arguments)[0],
    }
    return {"rows": rows} | _compare(forms, device)


def _scatter_loss(hidden_CD: Tensor, weight_VD: Tensor, target_C1: Tensor) -> tuple[Tensor, Tensor]:
    z_CV = F.linear(hidden_CD, weight_VD)
    log_p_CV = torch.log_softmax(z_CV.float(), dim=-1)
    loss = -log_p_CV.gather(1, target_C1).sum()
    minus = log_p_CV.new_full((1, 1), -1.0).expand_as(target_C1)
    return log_p_CV.exp().scatter_add_(1, target_C1, minus).to(z_CV.dtype), loss


def _compare(forms: dict[str, Callable[[], Tensor]], device: torch.device) -> Figures:
    """Milliseconds of each form, and how far its result is from the first one's."""
    figures: Figures = {}
    with torch.no_grad():
        first, *_ = (call().float() for call in forms.values())
        for name, call in forms.items():
            figures[f"{name} ms"] = seconds_of_kernel(call, device) * 1e3
            figures[f"{name} differs by"] = float((call().float() - first).abs().max())
    return figures


def _compiler(task: Figures) -> Callable[[Any], Any]:
    return functools.partial(torch.compile, dynamic=False) if task["compiled"] else lambda function: function


def _product_rate(m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product [m, k] × [k, n]."""
    a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
    return 2 * m * k * n / seconds_of_kernel(lambda: F.linear(a, b), device)


def _versions() -> dict[str, str | int | None]:
    found: dict[str, str | int | None] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.backends.cudnn.is_available():
        found["cudnn"] = torch.backends.cudnn.version()
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _priority() -> dict[str, str]:
    """What torch prefers, and which kernels of attention it tries first."""
    cuda = torch.backends.cuda
    preferred = {
        name.removeprefix("preferred_").removesuffix("_library"): str(getattr(cuda, name)()).rpartition(".")[2]
        for name in ("preferred_blas_library", "preferred_linalg_library")
    }
    enabled = {
        "flash": cuda.flash_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
    }
    preferred["disabled attention"] = ", ".join(name for name, is_on in enabled.items() if not is_on) or "none"
    if order := getattr(torch._C, "_get_sdp_priority_order", None):
        names = {int(backend): name.lower() for name, backend in SDPBackend.__members__.items()}
        preferred["attention"] = ", ".join(names.get(number, str(number)) for number in order())
    return preferred
