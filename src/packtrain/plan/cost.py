"""Decides how long a run takes on a machine and what that costs, from a measured rate or an assumed share of the peak."""

from dataclasses import dataclass
from typing import Any

from packtrain.config.run import RunConfig
from packtrain.plan.activations import PrecisionName
from packtrain.plan.corpora import optimal_tokens
from packtrain.plan.devices import ACCELERATORS, Accelerator
from packtrain.plan.fit import Fit, Machine, count_shards, describe, fit_run
from packtrain.plan.length import validation_tokens
from packtrain.plan.links import find_wiring
from packtrain.plan.parameters import flops_per_token, num_parameters
from packtrain.plan.scale import Cluster, estimate_scale

ASSUMED_MFU = 0.4
# Validation is the forward pass alone, a third of the work of training on a token.
_FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class Offer:
    """Accelerators that somebody asks about."""

    device: Accelerator
    per_node: int = 1
    nodes: int = 1
    mfu: float = ASSUMED_MFU
    price_per_hour: float | None = None
    """Of one device. None: the assumed one of the table, if it has one."""
    network_gbit_s: float | None = None
    """Of each node. None: the usual one of such nodes."""

    @property
    def num_devices(self) -> int:
        return self.per_node * self.nodes


def estimate_offer(config: RunConfig, offer: Offer, tokens: int | None) -> dict[str, Any]:
    """Fit, hours and cost of `tokens` of `config` on accelerators; everything is computed from assumed MFU and price.

    `mfu` is that of one device alone; of several, `scale` says which part of it they keep, as `estimate_scale` computes it, and
    `ways` the same for each way to divide the model. Both are None for one device, and for a step that cannot be divided.
    """
    device = offer.device
    wanted = config.train.precision
    precision: PrecisionName = _best(device) if wanted == "auto" else wanted
    machine = Machine(device.name, round(device.memory_gb * 1e9), precision, num_devices=offer.num_devices)
    fit = fit_run(config, machine)
    figures = describe(fit, machine)
    peak = device.peak_flops(precision)
    if peak is None:
        figures |= {
            "fits": False,
            "problem": f"{device.name} does not compute in {precision}; write train.precision=auto",
            "settings_that_fit": ["train.precision=auto"],
        }
    scale, ways = (None, None) if peak is None else _estimate_ways(config, offer, fit, peak, precision)
    efficiency = 1.0 if scale is None else scale["efficiency"]
    rate = (
        None
        if peak is None
        else peak * offer.mfu * offer.num_devices * efficiency / flops_per_token(config.model, config.data.seq_len)
    )
    price, is_given = offer.price_per_hour, offer.price_per_hour is not None
    return {
        **figures,
        "gpus_per_node": offer.per_node,
        "nodes": offer.nodes,
        "peak_flops": peak,
        "mfu": offer.mfu,
        "source": device.source,
        "tokens": tokens,
        "tokens_per_s": rate,
        "scale": scale,
        "ways": ways,
        **hours_of(config, tokens, rate),
        **_cost(config, tokens, rate, price if is_given else device.price_per_hour, offer.num_devices),
        "price_is": "given" if is_given else "assumed",
    }


def hours_of(config: RunConfig, tokens: int | None, tokens_per_s: float | None) -> dict[str, float | None]:
    """Hours of training, of its validations, and of both, at a rate of training; None if either figure is unknown."""
    if not tokens or not tokens_per_s:
        return {"training_hours": None, "validation_hours": None, "hours": None}
    validated = validation_tokens(config, tokens // config.train.global_batch_tokens)
    training, validation = (count / tokens_per_s / 3600 for count in (tokens, validated * _FORWARD_SHARE))
    return {"training_hours": training, "validation_hours": validation, "hours": training + validation}


def reference_offers(
    config: RunConfig, tokens: int | None, gpus: int | None, mfu: float, price_per_hour: float | None
) -> list[dict[str, Any]]:
    """What people compare with: this length on eight H100, and a compute-optimal one on one RTX 4090."""
    optimal = optimal_tokens(num_parameters(config.model))
    # Whole steps, as training takes them.
    optimal = max(1, optimal // config.train.global_batch_tokens) * config.train.global_batch_tokens
    wanted = (("H100", gpus or 8, tokens or optimal), ("RTX 4090", gpus or 1, optimal))
    return [
        estimate_offer(config, Offer(ACCELERATORS[name], count, 1, mfu, price_per_hour), length)
        | {"length_is": "compute-optimal" if length == optimal else "as planned"}
        for name, count, length in wanted
    ]


def _estimate_ways(
    config: RunConfig, offer: Offer, fit: Fit, peak: float, precision: PrecisionName
) -> tuple[dict[str, Any] | None, list[dict[str, Any]] | None]:
    """What several devices keep of their rate: as the run would be divided, and in each of the ways that there are."""
    count = offer.num_devices
    if count == 1 or config.rows_per_step % count:
        return None, None
    cluster = Cluster(offer.per_node, offer.nodes, find_wiring(offer.device, offer.network_gbit_s), peak * offer.mfu)
    chosen = count_shards(config, fit.mode, count)
    shards = sorted({1, chosen, count} | ({offer.per_node} if offer.nodes > 1 else set()))
    ways = [estimate_scale(config, cluster, each, fit.micro_batch_size, precision) for each in shards]
    return ways[shards.index(chosen)], ways


def _cost(
    config: RunConfig, tokens: int | None, rate: float | None, price: float | None, num_devices: int
) -> dict[str, float | None]:
    hours = hours_of(config, tokens, rate)["hours"]
    return {
        "price_per_hour": price,
        "cost": None if hours is None or price is None else hours * price * num_devices,
    }


def _best(device: Accelerator) -> PrecisionName:
    return "bf16" if device.bf16 else "fp16"
