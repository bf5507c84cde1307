"""Decides which library is faster at a product, by taking the product a few times with each in turns.

Letters: N rows, I inputs, O outputs.
"""

import functools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from packtrain.config.cpu import KINDS, ONEDNN, TORCH, CpuConfig, describe_layers
from packtrain.config.model import ModelConfig
from packtrain.model.cpu.products import Products

# A product that would take more is measured with fewer rows or outputs, so that all of them take less than a second.
_MOST_FLOPS = 2e8
_FEWEST_ROWS, _FEWEST_OUTPUTS = 128, 256
# More rows than these change no rate.
_MOST_ROWS = 1024
_ENOUGH_S = 0.5
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 12
# Below this the measurement would say little, and the choice matters as little.
_MEASURED_FLOPS = 1e8
# oneDNN has to be this much faster, so that two libraries that are equally fast give the same choice on another day.
_MARGIN = 1.03

_BY = {name: Products.of(CpuConfig(**dict.fromkeys(KINDS, name))) for name in (TORCH, ONEDNN)}


class Product(NamedTuple):
    """A product of a linear layer at `rows` tokens; `kind` is one of `KINDS`."""

    kind: str
    rows: int
    inputs: int
    outputs: int

    @property
    def name(self) -> str:
        """As a cache calls it."""
        return f"{self.kind} {self.rows}x{self.inputs}x{self.outputs}"

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inputs * self.outputs


class Rates(NamedTuple):
    """FLOP/s of each library at a product."""

    torch: float
    onednn: float

    @property
    def prefer_onednn(self) -> bool:
        """Whether oneDNN is faster by more than chance would have it."""
        return self.onednn > _MARGIN * self.torch


def list_shapes(model: ModelConfig) -> list[tuple[int, int]]:
    """Inputs and outputs of the model's linear layers, each shape once; the logits' are last."""
    D, F, K = model.hidden_size, model.intermediate_size, model.head_size
    q, kv = model.num_attention_heads * K, model.kv_heads * K
    return list(dict.fromkeys([(D, q), (D, kv), (q, D), (D, F), (F, D), (D, model.vocab_rows)]))


def list_products(model: ModelConfig, rows: int) -> list[Product]:
    """The products of a step of `rows` tokens whose rates decide, each once; none if all of them are small."""
    rows = min(rows, _MOST_ROWS)
    products = [Product(kind, rows, *shape) for shape in list_shapes(model) for kind in KINDS]
    return products if max(product.flops for product in products) >= _MEASURED_FLOPS else []


def choose(measured: Iterable[tuple[Product, Rates]]) -> CpuConfig:
    """The faster library for each product."""
    shapes: dict[str, set[tuple[int, int]]] = {kind: set() for kind in KINDS}
    taken: dict[str, set[tuple[int, int]]] = {kind: set() for kind in KINDS}
    for product, rates in measured:
        shape = (product.inputs, product.outputs)
        shapes[product.kind].add(shape)
        if rates.prefer_onednn:
            taken[product.kind].add(shape)
    return CpuConfig(**{kind: describe_layers(taken[kind], shapes[kind]) for kind in KINDS})


def time_products(products: Iterable[Product], dtype: torch.dtype, num_threads: int) -> dict[str, Rates]:
    """The rates at each product, by its name, on `num_threads` threads. Needs `can_use_onednn`."""
    # A thread of its own, as lanes have: the number of threads belongs to the thread that sets it.
    with ThreadPoolExecutor(1, "timing", initializer=torch.set_num_threads, initargs=(num_threads,)) as pool:
        # Other work on the machine disturbs the time of this thread least, but it has only this thread's.
        clock = time.thread_time if num_threads == 1 else time.perf_counter
        return pool.submit(_time, list(products), dtype, clock).result()


@torch.no_grad()
def _time(products: list[Product], dtype: torch.dtype, clock: Callable[[], float]) -> dict[str, Rates]:
    sized = [_cut(product) for product in products]
    begun = time.perf_counter()
    best = [dict.fromkeys(_BY, float("inf")) for _ in products]
    for number in range(_MOST_ROUNDS):
        for product, fastest in zip(sized, best, strict=True):
            takes = _prepare(product, dtype)
            # In turns, so that neither always finds the operands in the caches.
            for library in sorted(takes, reverse=number % 2 == 1):
                start = clock()
                takes[library]()
                # The first round creates the kernels.
                if number:
                    fastest[library] = min(fastest[library], clock() - start)
        if number + 1 >= _LEAST_ROUNDS and time.perf_counter() - begun > _ENOUGH_S:
            break
    return {
        product.name: Rates(*(cut.flops / fastest[library] for library in (TORCH, ONEDNN)))
        for product, cut, fastest in zip(products, sized, best, strict=True)
    }


def _cut(product: Product) -> Product:
    """The same product with less of what is not summed over, if it is large."""
    kind, rows, inputs, outputs = product
    share = _MOST_FLOPS / product.flops
    if share >= 1:
        return product
    if kind != KINDS[2]:
        fewer = max(min(rows, _FEWEST_ROWS), round(rows * share))
        share *= rows / fewer
        rows = fewer
    outputs = max(min(outputs, _FEWEST_OUTPUTS), round(outputs * min(share, 1)))
    return Product(kind, rows, inputs, outputs)


def _prepare(product: Product, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """The product by each library."""
    kind, rows, inputs, outputs = product
    # Not zeros, which some CPUs multiply faster; nothing is drawn.
    sizes = ((rows, inputs), (rows, outputs), (outputs, inputs))
    x_NI, dy_NO, weight_OI = (torch.linspace(0.1, 1, a * b).to(dtype).view(a, b) for a, b in sizes)
    if kind == KINDS[0]:
        return {library: functools.partial(products.outputs, x_NI, weight_OI) for library, products in _BY.items()}
    if kind == KINDS[1]:
        return {
            library: functools.partial(products.input_gradient, dy_NO, weight_OI) for library, products in _BY.items()
        }
    return {library: functools.partial(products.weight_gradient, dy_NO, x_NI) for library, products in _BY.items()}
