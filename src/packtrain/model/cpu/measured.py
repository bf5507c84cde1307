"""Decides how fast each library is at some products on this machine: what is kept of earlier measurements, and else a new one."""

from collections.abc import Sequence

import torch

from packtrain.model.cpu.kept_rates import describe_conditions, keep_rates, read_rates
from packtrain.model.cpu.timing import Product, Rates, time_products


def find_rates(
    products: Sequence[Product], dtype: torch.dtype, num_threads: int, *, again: bool = False
) -> tuple[list[tuple[Product, Rates]], int]:
    """Both libraries' rates at each product, and how many of the products had to be measured now.

    `again`: measures all of them, and keeps whichever rate is higher: other work on a machine only lowers it. Needs
    `can_use_onednn`.
    """
    conditions = describe_conditions(str(dtype).removeprefix("torch."), num_threads)
    rates = read_rates(conditions)
    missing = [product for product in products if again or product.name not in rates]
    if missing:
        rates = keep_rates(conditions, time_products(missing, dtype, num_threads))
    return [(product, rates[product.name]) for product in products], len(missing)
