"""Decides how runs are planned, trained and read in Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from packtrain.api.settings import Settings, to_words
from packtrain.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from packtrain.config.load import Resolved
    from packtrain.config.run import RunConfig
    from packtrain.runs.ladder import LadderRecord, RungRecord


def load_config(preset: str | Path, *settings: Settings) -> RunConfig:
    """Every setting of a run, from a preset's name or a TOML file and `settings`. Raises ConfigError.

    The model's shape is that of the weights, if the run starts from some.
    """
    from packtrain.config.load import load_run_config

    return with_shape(load_run_config(str(preset), to_words(settings)))


def with_shape(resolved: Resolved[RunConfig]) -> RunConfig:
    """A configuration with the shape of the weights that the run starts from, if it starts from some."""
    if not (resolved.config.train.init_from or resolved.config.train.continue_from):
        return resolved.config
    from packtrain.train.shape import take_shape

    return take_shape(resolved)


def plan(
    preset: str | Path,
    *settings: Settings,
    gpu: str | None = None,
    gpus: int | None = None,
    nodes: int = 1,
    mfu: float = 0.4,
    price_per_hour: float | None = None,
    rate: dict[str, Any] | None = None,
    network_gbit_s: float | None = None,
) -> dict[str, Any]:
    """Parameters, FLOPs, memory by part, the micro-batch that fits, hours and cost of a run: what `plan --json` prints.

    Sizes end in `_bytes`, and `hours` are hours. `target` is the machine that is planned for: this one, or `gpus` of the
    accelerator `gpu` in each of `nodes`, whose network has `network_gbit_s` (unset: the usual). Figures under `measured` are
    of this machine; the others are computed, with the values under `assumed`: `mfu`, a share of a GPU's peak, and the
    `price_per_hour` of one GPU. This machine's rate is measured only if `rate` is given, which
    `packtrain.train.probe.measure` takes. Raises ConfigError.
    """
    from packtrain.plan.outlook import compute_plan

    return compute_plan(
        load_config(preset, *settings),
        preset=str(preset),
        settings=to_words(settings),
        gpu=gpu,
        gpus=gpus,
        nodes=nodes,
        mfu=mfu,
        price_per_hour=price_per_hour,
        rate=rate,
        network_gbit_s=network_gbit_s,
    )


def train(
    preset: str | Path,
    *settings: Settings,
    run: str | Path,
    resume: bool = False,
    change: Settings | None = None,
    init_from: str | Path | None = None,
    continue_from: str | Path | None = None,
    extend_vocab: bool = False,
    on_step: Callable[[dict[str, Any]], object] | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Trains a model in the folder `run`; with `resume` continues a run there, with its own settings.

    Those of a run that is resumed may differ if they change no number, or if they are in `change`. A new run starts from
    the weights of `init_from`, a Llama or Qwen3 from elsewhere, or of `continue_from`, another run or a checkpoint of one;
    `extend_vocab` lets the dataset have another tokenizer than that model.

    `on_step` is called on the main rank after each step with its metrics (`step, tokens, loss, lr, grad_norm, tokens_per_s,
    step_s, memory_bytes`), and after each validation with `step, val_loss, val_ppl, val_bpb`. If it returns True, the run is
    saved and stops; `resume=True` continues it. An exception that it raises ends the run without saving.
    `on_event` gets each line of events.jsonl: checkpoints, skipped steps, roll-backs.

    Returns step, steps (planned), tokens, loss, val_loss (nats per token), val_ppl, val_bpb (bits per byte), checkpoint, and
    run. Raises errors that you can fix (UserError), Interrupted after Ctrl-C or SIGTERM (saved), and GuardError.
    """
    from packtrain.train.origin import describe_preset, resolve_config
    from packtrain.train.run import train as train_run

    name, typed = str(preset), to_words(settings)
    typed += [
        f"train.{key}={path}" for key, path in (("init_from", init_from), ("continue_from", continue_from)) if path
    ]
    typed += ["train.extend_vocab=true"] if extend_vocab else []
    config = resolve_config(name, typed, Path(run), resume=resume, changed=to_words((change,) if change else ()))
    return train_run(config, Path(run), resume=resume, on_step=on_step, on_event=on_event, preset=describe_preset(name))


def ladder(
    preset: str | Path,
    *settings: Settings,
    out: str | Path | None = None,
    budget: str = "30m",
    on_plan: Callable[[LadderRecord], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_end: Callable[[RungRecord], None] | None = None,
) -> LadderRecord:
    """Trains small models of the preset's family in the folder `out`, and predicts the preset's loss from theirs.

    `budget` is time of this machine (`30m`, `2h`) or FLOPs (`1e15flops`). Continues where it was stopped. Without `out`, it only
    plans: `runs` says which models, tokens and seconds. `on_plan` gets the ladder before the first step, `on_step` the steps
    done and in all, `on_end` each run that has ended.

    Returns the ladder: `runs`, `law`, `held_out` (the largest size, predicted without it) and `prediction`, with `loss` in nats
    per token, `bits_per_byte`, and the ends of their intervals. Raises errors that you can fix (UserError), and Interrupted
    after Ctrl-C or SIGTERM (saved).
    """
    from packtrain.ladder.budget import parse_budget
    from packtrain.ladder.climb import climb, plan_ladder

    allowed, config = parse_budget(budget), load_config(preset, *settings)
    if out is None:
        return plan_ladder(str(preset), config, allowed)
    return climb(str(preset), config, allowed, Path(out), on_plan=on_plan, on_step=on_step, on_end=on_end)


def resume(
    run: str | Path,
    *settings: Settings,
    change: Settings | None = None,
    on_step: Callable[[dict[str, Any]], object] | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Continues a run where it stopped, with its own settings; the rest is as in `train`.

    `settings` are those that change no number, such as train.device; any other that is meant to differ goes into `change`.
    """
    from packtrain.runs.layout import find_run
    from packtrain.train.resume import continue_config
    from packtrain.train.run import train as train_run

    changed = to_words((change,) if change else ())
    config = continue_config(find_run(Path(run)), to_words(settings), changed)
    return train_run(config, Path(run), resume=True, on_step=on_step, on_event=on_event)


class RunMetrics(NamedTuple):
    """The metrics of a run as columns: arrays of equal length, as `pandas.DataFrame` takes them."""

    train: dict[str, np.ndarray]
    """`step` and `tokens` int64[n], and each other name float64[n]: NaN where a line lacks it or it was not finite."""
    validation: dict[str, np.ndarray]
    """`step` int64[n]; val_loss (nats per token), val_ppl, val_bpb (bits per byte), and others, float64[n]."""


_TRAIN_COLUMNS = ("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "step_s", "memory_bytes")
_VALIDATION_COLUMNS = ("step", "val_loss", "val_ppl", "val_bpb")


def metrics(run: str | Path) -> RunMetrics:
    """The metrics of a run, finished or still being trained, by column; validation apart.

    Columns are empty until there are lines. A line that is still being written is left out. Raises RunError if the folder is
    not a run, or if a line is damaged.
    """
    from packtrain.runs.layout import find_run
    from packtrain.runs.metrics import read_metrics

    lines = read_metrics(find_run(Path(run)).metrics)
    return RunMetrics(
        _columns([line for line in lines if "loss" in line], _TRAIN_COLUMNS),
        _columns([line for line in lines if "val_loss" in line], _VALIDATION_COLUMNS),
    )


def _columns(lines: list[dict[str, Any]], usual: tuple[str, ...]) -> dict[str, np.ndarray]:
    import numpy as np

    names = list(dict.fromkeys([*usual, *(name for line in lines for name in line)]))
    found: dict[str, np.ndarray] = {}
    for name in names:
        values = [line.get(name) for line in lines]
        if name in ("step", "tokens") and None not in values:
            found[name] = np.array(values, dtype=np.int64)
        elif all(value is None or isinstance(value, int | float) for value in values):
            found[name] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        else:
            found[name] = np.array(values, dtype=object)
    return found


def report(*targets: str | Path, out: str | Path | None = None) -> Path:
    """Writes one HTML page about a run, several runs compared, a dataset or a ladder, and gives its path.

    `out` is by default report.html in the first folder. Raises RunError, DatasetError, and ConfigError for a mixture of both.
    """
    from packtrain.api.target import is_dataset, is_ladder

    folders = [Path(target) for target in targets]
    file = None if out is None else Path(out)
    if not folders:
        raise ConfigError("a report is about runs or about one dataset; give a folder")
    if any(is_dataset(folder) for folder in folders):
        from packtrain.report.dataset_page import write_dataset_report

        if len(folders) > 1:
            raise ConfigError(
                "a report is about runs or about one dataset; give only runs or one dataset, or compare two with `packtrain diff`"
            )
        return write_dataset_report(folders[0], file)
    if len(folders) == 1 and is_ladder(folders[0]):
        from packtrain.report.ladder import write_ladder_report

        return write_ladder_report(folders[0], file)
    from packtrain.report.page import write_report

    return write_report(folders, file)
