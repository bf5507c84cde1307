"""Decides whether a run fits into the memory of a kind of device, and if not, which settings would make it fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from packtrain.config.run import RunConfig
from packtrain.plan.activations import PrecisionName, activation_bytes
from packtrain.plan.memory import demand_bytes, fits, largest_micro_batch
from packtrain.plan.rows import choose_rows_of_ranks


@dataclass(frozen=True)
class Machine:
    """Devices of one kind that share a run."""

    name: str
    memory_bytes: int
    precision: PrecisionName
    device_type: str = "cuda"
    num_devices: int = 1


@dataclass(frozen=True)
class Fit:
    """How a run fits the memory of each device."""

    micro_batch_size: int
    mode: str
    """`one` process, `ddp` or `fsdp`: as parallel.mode says, and for `auto` as training chooses."""
    demand_bytes: int | None
    """Memory that each device must have; None if train.activation_gb cannot be kept."""
    is_enough: bool
    largest_micro_batch: int
    """The most rows that fit and of which a device's rows are a multiple; 0 if not even one does."""
    problem: str | None = None
    """Why the run cannot start on these devices, in one sentence with what to write instead."""
    remedy: tuple[str, ...] = ()
    """Settings with which it fits, as KEY=VALUE."""


def fit_run(config: RunConfig, machine: Machine) -> Fit:
    """How `config` fits `machine`, with the settings that would make it fit if it does not."""
    count = machine.num_devices
    shape = (machine.memory_bytes, machine.precision, machine.device_type)
    rows = choose_rows_of_ranks(config, count, *shape)
    mode = _choose_mode(config, rows, machine)
    shards = count_shards(config, mode, count)
    demand = demand_bytes(config, rows, machine.precision, machine.device_type, num_shards=shards)
    is_enough = demand is not None and demand <= machine.memory_bytes
    if config.rows_per_step % count:
        usable = max(n for n in range(1, count) if config.rows_per_step % n == 0)
        problem = (
            f"a step has {config.rows_per_step:,} rows, which is not a multiple of {count} devices; take {usable}, or change "
            "train.global_batch_tokens"
        )
        return Fit(rows, mode, demand, is_enough, 0, problem)
    largest = _largest(config, machine, shards)
    if is_enough:
        return _with_even_rows(config, machine, Fit(rows, mode, demand, True, largest))
    remedy = next(_remedies(config, machine, mode, rows), ())
    return Fit(rows, mode, demand, False, largest, _explain(machine, rows, demand, remedy), remedy)


def _with_even_rows(config: RunConfig, machine: Machine, fit: Fit) -> Fit:
    """The same, with a problem if a device's rows are not a multiple of the micro-batch, which training refuses."""
    per_device = config.rows_per_step // machine.num_devices
    if per_device % fit.micro_batch_size == 0:
        return fit
    even = _divisor(per_device, fit.micro_batch_size)
    problem = (
        f"each device has {per_device:,} rows in a step, which is not a multiple of train.micro_batch_size="
        f"{fit.micro_batch_size}; write train.micro_batch_size={even}"
    )
    return replace(fit, problem=problem, remedy=(f"train.micro_batch_size={even}",))


def _choose_mode(config: RunConfig, rows: int, machine: Machine) -> str:
    if machine.num_devices == 1:
        return "one"
    if config.parallel.mode != "auto" or config.parallel.shard_size is not None:
        return "fsdp" if config.parallel.mode == "fsdp" or config.parallel.shard_size else "ddp"
    shape = (rows, machine.memory_bytes, machine.precision, machine.device_type)
    copy_fits = fits(config, *shape)
    return "fsdp" if not copy_fits and fits(config, *shape, num_shards=machine.num_devices) else "ddp"


def count_shards(config: RunConfig, mode: str, num_devices: int) -> int:
    return (config.parallel.shard_size or num_devices) if mode == "fsdp" else 1


def _largest(config: RunConfig, machine: Machine, shards: int) -> int:
    most = largest_micro_batch(config, machine.memory_bytes, machine.precision, machine.device_type, num_shards=shards)
    return _divisor(config.rows_per_step // machine.num_devices, most)


def _remedies(config: RunConfig, machine: Machine, mode: str, rows: int) -> Iterator[tuple[str, ...]]:
    """Settings that make the run fit, those that change least first."""
    if (largest := _largest(config, machine, count_shards(config, mode, machine.num_devices))) > 0:
        yield (f"train.micro_batch_size={min(largest, rows)}",)
    if machine.num_devices > 1 and mode != "fsdp" and (largest := _largest(config, machine, machine.num_devices)) > 0:
        yield ("parallel.mode=fsdp", f"train.micro_batch_size={min(largest, rows)}")
    smaller = [(), *([] if config.optim.kind.is_low_bit else [("optim.name=adamw8bit",)])]
    for optimizer in smaller:
        changed = _with_optimizer(config, optimizer)
        if optimizer and (largest := _largest(changed, machine, count_shards(config, mode, machine.num_devices))) > 0:
            yield (*optimizer, f"train.micro_batch_size={min(largest, rows)}")
        for sharing in ("", "parallel.mode=fsdp") if machine.num_devices > 1 and mode != "fsdp" else ("",):
            shards = machine.num_devices if sharing else count_shards(config, mode, machine.num_devices)
            if budget := _activation_budget(changed, machine, shards):
                yield (*optimizer, *filter(None, [sharing]), "train.micro_batch_size=1", budget)


def _with_optimizer(config: RunConfig, words: tuple[str, ...]) -> RunConfig:
    if not words:
        return config
    optim = config.optim.model_copy(update={"name": words[0].partition("=")[2]})
    return config.model_copy(update={"optim": optim})


def _activation_budget(config: RunConfig, machine: Machine, shards: int) -> str | None:
    """The setting that recomputes every block, if one row fits with it."""
    least = activation_bytes(
        config.model, config.data.seq_len, machine.precision, config.model.num_hidden_layers, config.train.dropout > 0
    )
    budget = round(least / 1e9 + 0.0005, 3)
    train = config.train.model_copy(update={"activation_gb": budget})
    tight = config.model_copy(update={"train": train})
    enough = fits(tight, 1, machine.memory_bytes, machine.precision, machine.device_type, num_shards=shards)
    return f"train.activation_gb={budget:g}" if enough else None


def _explain(machine: Machine, rows: int, demand: int | None, remedy: tuple[str, ...]) -> str:
    if demand is None:
        what = f"{rows} rows do not fit in train.activation_gb even if every block is recomputed"
    else:
        what = (
            f"{'one row needs' if rows == 1 else f'micro-batches of {rows} rows need'} {demand / 1e9:,.1f} GB, and "
            f"{_owner(machine)} {machine.memory_bytes / 1e9:.0f} GB"
        )
    if remedy:
        return f"{what}; write {' '.join(remedy)}, which fits"
    return (
        f"{what}; not even one row fits with every block recomputed and 8-bit optimizer states: take devices with more memory, "
        "more of them with parallel.mode=fsdp, or a smaller model"
    )


def _owner(machine: Machine) -> str:
    return f"each {machine.name} has" if machine.num_devices > 1 else f"{machine.name} has"


def _divisor(rows: int, at_most: int) -> int:
    """The largest divisor of `rows` that is at most `at_most`; 0 if there is none."""
    return next((n for n in range(min(rows, at_most), 0, -1) if rows % n == 0), 0)


def describe(fit: Fit, machine: Machine) -> dict[str, Any]:
    """Both as plain values, for JSON."""
    return {
        "device": machine.name,
        "devices": machine.num_devices,
        "memory_bytes": machine.memory_bytes,
        "precision": machine.precision,
        "micro_batch_size": fit.micro_batch_size,
        "parallel_mode": fit.mode,
        "demand_bytes": fit.demand_bytes,
        "fits": fit.is_enough,
        "largest_micro_batch_size": fit.largest_micro_batch,
        "problem": fit.problem,
        "settings_that_fit": list(fit.remedy),
    }
