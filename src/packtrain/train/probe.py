"""Decides how the rate of training on this machine is measured: a few real steps, of fewer rows or blocks if they take long.

Run as a module, it is the child process in which `measure` takes them: the caller needs neither torch nor the memory.
"""

import json
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from packtrain.config.load import from_toml, to_toml
from packtrain.config.run import RunConfig
from packtrain.errors import DeviceError
from packtrain.plan.parameters import flops_per_token

if TYPE_CHECKING:
    from packtrain.data.feed.loader import Batch
    from packtrain.train.step import Placement

# Steps of a size that takes about this long are repeated until all of them took `_ENOUGH_S`.
_STEP_S = 1.0
_ENOUGH_S = 3.0
_LEAST_STEPS, _MOST_STEPS = 2, 40
_PATIENCE_S = 300


def measure(config: RunConfig) -> dict[str, Any]:
    """Tokens per second of training `config` on this machine, alone, in seconds.

    Also the same by the processor time of all threads (`tokens_per_processor_s`), what the rate belongs to (`device`,
    `device_type`, `memory_bytes`, `cores`, `threads`, `precision`, `micro_batch_size`, `lanes`), how it was measured (`rows`,
    `blocks`, `steps`, `seconds`, `measured_at`), and `base_bytes`, what the process took before it built a model. Raises
    DeviceError if the steps cannot be taken.
    """
    command = [sys.executable, "-m", "packtrain.train.probe"]
    try:
        child = subprocess.run(command, input=to_toml(config), capture_output=True, text=True, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"measuring this machine's rate took more than {_PATIENCE_S} s; write --no-probe to plan without it"
        ) from None
    answer = child.stdout.strip().rpartition("\n")[2]
    if child.returncode == 0 and answer.startswith("{"):
        found: dict[str, Any] = json.loads(answer)
        if "refused" not in found:
            return found
        reason = found["refused"]
    else:
        reason = (child.stderr.strip().rpartition("\n")[2] or f"it ended with code {child.returncode}")[:300]
    raise DeviceError(f"this machine's rate cannot be measured ({reason}); write --no-probe to plan without it")


def take_steps(config: RunConfig) -> dict[str, Any]:
    """In the child process: what `measure` returns."""
    import torch

    from packtrain.parallel.ranks import Ranks
    from packtrain.runs.manifest import hardware
    from packtrain.train.device import check_precision, keep_freed_memory, resolve_device, resolve_precision
    from packtrain.train.gpu import use_gpu
    from packtrain.train.memory import count_recomputed
    from packtrain.train.monitor import peak_memory_bytes
    from packtrain.train.step import Placement

    start = time.perf_counter()
    device = resolve_device(config.train.device)
    use_gpu(device)
    keep_freed_memory(device, is_tight=config.train.activation_gb is not None)
    check_precision(config.train, device)
    precision = resolve_precision(config.train, device)
    base = peak_memory_bytes(torch.device("cpu"))
    rows = config.rows_per_pass
    placement = Placement(device, precision, rows, Ranks())
    sizes = _choose_sizes(config, _matrix_rate(placement))
    recomputed = count_recomputed(config, placement) / config.model.num_hidden_layers
    found = [_time_steps(_with_blocks(config, n), placement, sizes.rows, round(recomputed * n)) for n in sizes.blocks]
    step_s = _of_step(config, sizes, [timed.seconds for timed in found])
    processor_s = _of_step(config, sizes, [timed.processor_seconds for timed in found])
    machine = hardware(device)
    return {
        "tokens_per_s": config.train.global_batch_tokens / step_s,
        "tokens_per_processor_s": config.train.global_batch_tokens / processor_s,
        "device": machine["device"],
        "device_type": device.type,
        "memory_bytes": machine["memory_bytes"],
        "cores": machine["cores"],
        "threads": machine["threads"],
        "precision": precision.name,
        "micro_batch_size": rows,
        "lanes": found[0].lanes,
        "rows": sizes.rows,
        "blocks": list(sizes.blocks),
        "steps": sum(timed.steps for timed in found),
        "seconds": time.perf_counter() - start,
        "measured_at": time.time(),
        "base_bytes": base,
    }


class _Sizes(NamedTuple):
    """What is timed: micro-batches of `rows`, with a model of each number of `blocks`."""

    rows: int
    blocks: tuple[int, ...]


class _Timed(NamedTuple):
    """Medians of a micro-batch and of the update after it, by the clock and by the processor time of all threads."""

    seconds: tuple[float, float]
    processor_seconds: tuple[float, float]
    steps: int
    lanes: int


def _choose_sizes(config: RunConfig, flops_per_s: float) -> _Sizes:
    """The run's own micro-batch and model if a step of them is short, else fewer rows, else also two models of fewer blocks."""
    rows = config.rows_per_pass
    whole = config.model.num_hidden_layers

    def seconds(rows: int, blocks: int) -> float:
        model = _with_blocks(config, blocks).model
        return rows * config.data.seq_len * flops_per_token(model, config.data.seq_len) / flops_per_s

    # An even number stays even: it is what two lanes need.
    while rows > 2 and rows % 2 == 0 and seconds(rows, whole) > _STEP_S:
        rows //= 2
    if seconds(rows, whole) <= 2 * _STEP_S or whole < 4:
        return _Sizes(rows, (whole,))
    if rows > 2 and rows % 2:
        rows = 1
    more = next((n for n in range(whole // 2, 2, -1) if seconds(rows, n) <= _STEP_S), 3)
    return _Sizes(rows, (1, more))


def _with_blocks(config: RunConfig, blocks: int) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"num_hidden_layers": blocks})})


def _of_step(config: RunConfig, sizes: _Sizes, timed: list[tuple[float, float]]) -> float:
    """Seconds of a whole step, from those of a micro-batch and of an update at each number of blocks."""
    micro, update = (_extrapolate(config, sizes.blocks, [pair[part] for pair in timed]) for part in (0, 1))
    return -(-config.rows_per_step // sizes.rows) * micro + update


def _extrapolate(config: RunConfig, blocks: tuple[int, ...], seconds: list[float]) -> float:
    """Seconds with all blocks, as a straight line through what was measured; what is outside the blocks stays the same."""
    if len(blocks) == 1:
        return seconds[0]
    (few, many), (fast, slow) = blocks, seconds
    each = max(slow - fast, 0.0) / (many - few)
    return fast + each * (config.model.num_hidden_layers - few)


def _matrix_rate(placement: "Placement") -> float:
    """FLOP/s of matrix products in the run's precision, roughly: only to choose how much to time."""
    import torch

    size = 768
    a = torch.randn(size, size, device=placement.device, dtype=placement.precision.dtype or torch.float32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)


def _time_steps(config: RunConfig, placement: "Placement", rows: int, num_recomputed: int) -> _Timed:
    """Times steps of one micro-batch of `rows`."""
    import dataclasses

    import torch

    from packtrain.model.cpu.blocks import use_cpu_kernels
    from packtrain.model.cpu.products import Products
    from packtrain.model.init import build
    from packtrain.model.roles import roles
    from packtrain.optim.build import build_optimizer
    from packtrain.parallel.lanes import split_into_lanes
    from packtrain.train.cpu_libraries import resolve_cpu_libraries
    from packtrain.train.device import resolve_lanes
    from packtrain.train.setup import SHARDING
    from packtrain.train.step import draw_dropout, train_step

    device = placement.device
    placement = dataclasses.replace(placement, micro_batch_size=rows)
    lanes = resolve_lanes(config, rows, device, is_alone=True, is_compiled=False)
    config = resolve_cpu_libraries(config, None, placement, num_lanes=lanes) if device.type == "cpu" else config
    model = build(config.model, seed=config.train.seed, device=device)
    if device.type == "cpu":
        use_cpu_kernels(model, Products.of(config.cpu))
    model.recompute(num_recomputed)
    precision = placement.precision
    optimizer = build_optimizer(config.optim, dict(model.named_parameters()), roles(model), precision.dtype, SHARDING)
    optimizer.make_states()
    trained, batch = split_into_lanes(model, lanes), _random_batch(config, rows)
    marks: list[list[tuple[float, float]]] = []
    begun = time.perf_counter()

    def mark() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks[-1].append((time.perf_counter(), time.process_time()))

    while len(marks) < _LEAST_STEPS or (time.perf_counter() - begun < _ENOUGH_S and len(marks) < _MOST_STEPS):
        marks.append([])
        mark()
        train_step(
            trained,
            optimizer,
            batch,
            placement,
            grad_clip=config.train.grad_clip,
            dropout=draw_dropout(config.train, len(marks), rows, rank=0),
            before_update=mark,
        )
        mark()
    wall, processor = (
        # The first step allocates, and finds its kernels. An update that is skipped leaves no mark before it.
        [[times[clock] for times in step] for step in marks[1:] if len(step) == 3]
        for clock in (0, 1)
    )
    if not wall:
        raise DeviceError("the loss of random tokens is not finite")
    return _Timed(_medians(wall), _medians(processor), len(marks), lanes)


def _medians(marks: list[list[float]]) -> tuple[float, float]:
    return median(step[1] - step[0] for step in marks), median(step[2] - step[1] for step in marks)


def _random_batch(config: RunConfig, rows: int) -> "Batch":
    import torch

    from packtrain.data.feed.loader import Batch, Rows
    from packtrain.data.feed.position import LoaderState

    length = config.data.seq_len
    tokens_BT = torch.randint(config.model.vocab_rows, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    segments_BT = positions_BT = None
    if config.data.document_mask:
        # A few documents in each row, as web pages in rows of a thousand tokens are.
        places = torch.arange(length).expand(rows, length)
        each = max(1, -(-length // 3))
        segments_BT, positions_BT = (places // each).int(), places % each
    found = Rows(tokens_BT[:, :-1], tokens_BT[:, 1:], segments_BT, positions_BT)
    return Batch(found, state=LoaderState("", "", 0, 0, 0), num_targets=rows * length)


def _main() -> None:
    from packtrain.errors import PacktrainError

    try:
        found = take_steps(from_toml(RunConfig, sys.stdin.read(), "the caller"))
    except PacktrainError as error:
        found = {"refused": str(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
