"""Decides how much of their rate devices keep when several share a run: what they wait for each other, and what each repeats.

Assumed: what can overlap does, and communication takes nothing from the passes beside it; so a step takes at least this long.
"""

import math
from dataclasses import dataclass
from typing import Any

from packtrain.config.optimizers import OPTIMIZERS
from packtrain.config.run import RunConfig
from packtrain.plan.activations import PrecisionName
from packtrain.plan.exchange import Collective, Division, batches_of_matrices, list_collectives, matrix_shapes
from packtrain.plan.links import Link, Wiring
from packtrain.plan.parameters import flops_per_token, num_parameters, parameters_by_part

# Of the work of a step, in the forward pass and in the backward pass.
_PASSES = {"forward": 1 / 3, "backward": 2 / 3}
# Of Newton and Schulz, as `optim.muon` does them.
_ROUNDS = 5


@dataclass(frozen=True)
class Cluster:
    """Devices of one kind in nodes, and what one of them does alone."""

    per_node: int
    nodes: int
    wiring: Wiring
    flops_per_s: float
    """Of a device that trains alone, with its updates: an assumed share of its peak."""

    @property
    def num_devices(self) -> int:
        return self.per_node * self.nodes


def estimate_scale(
    config: RunConfig, cluster: Cluster, num_shards: int, rows: int, precision: PrecisionName
) -> dict[str, Any]:
    """Seconds of a step and of what is in it, in micro-batches of `rows`, with the bytes of every collective; all computed.

    `efficiency`: the rate of all devices as a share of that many times the rate of one alone, at the same global batch;
    `efficiency_without_overlap`: the same if they wait for every exchange.
    """
    division = Division(cluster.num_devices, num_shards)
    rows_of_rank = max(1, config.rows_per_step // cluster.num_devices)
    count = -(-rows_of_rank // rows)
    alone_s = (
        config.train.global_batch_tokens * flops_per_token(config.model, config.data.seq_len) / cluster.flops_per_s
    )
    update_alone_s = _update_s(config, Division(1), cluster)
    # An update that takes longer than a step at the assumed rate means that this rate is not reached.
    passes_s = max(0.0, alone_s - update_alone_s) / cluster.num_devices
    update_s = _update_s(config, division, cluster)
    collectives = list_collectives(
        config.model, config.optim.name, division, num_micro_batches=count, precision=precision
    )
    timed = [(each, _seconds(each, division, cluster)) for each in collectives]
    waits = _waits(timed, passes_s, count)
    communication_s, waiting_s = sum(seconds for _, seconds in timed), sum(waits.values())
    step_s = passes_s + update_s + waiting_s
    ideal_s = max(alone_s, update_alone_s) / cluster.num_devices
    return {
        "parallel_mode": division.mode,
        "num_shards": num_shards,
        "micro_batches": count,
        "links": [_describe(link) for link in _used_links(cluster)],
        "step_s": step_s,
        "passes_s": passes_s,
        "update_s": update_s,
        "communication_s": communication_s,
        "waiting_s": waiting_s,
        "efficiency": min(1.0, ideal_s / step_s),
        "efficiency_without_overlap": min(1.0, ideal_s / (passes_s + update_s + communication_s)),
        "collectives": [
            {
                "what": each.what,
                "kind": each.kind,
                "count": each.count,
                "total_bytes": each.total_bytes,
                "ranks": _ranks(each, division),
                "during": each.during,
                "seconds": seconds,
            }
            for each, seconds in timed
        ],
    }


def _waits(timed: list[tuple[Collective, float]], passes_s: float, count: int) -> dict[str, float]:
    """Seconds of a step in which devices only wait, by what they could compute meanwhile."""
    hidden_s = {
        "forward": passes_s * _PASSES["forward"],
        "backward": passes_s * _PASSES["backward"],
        "last backward": passes_s * _PASSES["backward"] / count,
        "update": 0.0,
    }
    # What comes with every micro-batch is in the way of what comes with the last.
    hidden_s["last backward"] -= sum(s for each, s in timed if each.during == "backward") / count
    waits = {}
    for during, room_s in hidden_s.items():
        these = [(each, seconds) for each, seconds in timed if each.during == during]
        tail_s = sum(seconds * each.tail_bytes / max(1, each.total_bytes) for each, seconds in these)
        rest_s = sum(seconds for _, seconds in these) - tail_s
        waits[during] = tail_s + max(0.0, rest_s - max(0.0, room_s))
    return waits


def _seconds(each: Collective, division: Division, cluster: Cluster) -> float:
    """How long the devices' links are busy with it in a step."""
    ranks, link = _ranks(each, division), _slowest(each, division, cluster)
    share = (ranks - 1) / ranks
    # As rings send it (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md).
    sent = {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": share, "all-to-all": share / ranks}
    # NCCL sums small tensors in trees, and gathers in rings.
    hops = 2 * math.log2(ranks) if each.kind == "all-reduce" else ranks - 1
    return each.total_bytes * sent[each.kind] / link.rate + each.count * (link.first_s + hops * link.hop_s)


def _slowest(each: Collective, division: Division, cluster: Cluster) -> Link:
    """The link that the exchange waits for. A node's network is shared by its rings, which each use a part of it."""
    inside, network = cluster.wiring.inside, cluster.wiring.network
    if cluster.nodes == 1 or (each.among == "shards" and division.num_shards <= cluster.per_node):
        return inside
    rate = network.rate
    if each.among == "copies":
        # Each device of a node has a shard of its own to exchange with other nodes.
        rate = network.rate / min(cluster.per_node, division.num_shards)
    return Link(
        network.name, network.vendor_rate, min(inside.rate, rate), network.source, network.first_s, network.hop_s
    )


def _ranks(each: Collective, division: Division) -> int:
    return {"all": division.world_size, "shards": division.num_shards, "copies": division.num_copies}[each.among]


def _update_s(config: RunConfig, division: Division, cluster: Cluster) -> float:
    """Seconds of one device's part of an update: it reads and writes memory, and orthogonalises matrices if it does."""
    kind, model = OPTIMIZERS[config.optim.name], config.model
    N, parts = num_parameters(model), parameters_by_part(model)
    matrices = parts["attention"] + parts["feed-forward"] if kind.orthogonalises else 0
    states = kind.state_bytes * (N - matrices) + (kind.matrix_bytes or 0) * matrices
    # Gradients are read for their norm, scaled, and read again; weights and states are read and written.
    bytes_moved = (4 * 4 * N + 2 * 4 * N + 2 * states) / division.num_shards
    flops = 0.0
    if kind.orthogonalises:
        sharers = division.num_shards if division.num_shards > 1 else division.world_size
        for shape, number in matrix_shapes(model).items():
            short, long = sorted(shape)
            mine = sum(-(-n // sharers) for n in batches_of_matrices(number, short * long, sharers, "cuda"))
            flops += mine * _ROUNDS * (4 * short * short * long + 2 * short**3)
    return bytes_moved / cluster.wiring.memory_rate + flops / cluster.flops_per_s


def _used_links(cluster: Cluster) -> list[Link]:
    inside, network = cluster.wiring.inside, cluster.wiring.network
    return [*([inside] if cluster.per_node > 1 else []), *([network] if cluster.nodes > 1 else [])]


def _describe(link: Link) -> dict[str, Any]:
    return {"name": link.name, "vendor_rate": link.vendor_rate, "rate": link.rate, "source": link.source}
