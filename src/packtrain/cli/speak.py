"""Decides what a training run says while it runs: a header, a line for whatever happens, and a bar or the lines of a log."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packtrain.cli import screen
from packtrain.cli.following import show_next, write_command
from packtrain.cli.relaunch import continue_command
from packtrain.errors import Interrupted
from packtrain.report.figures import duration, short

if TYPE_CHECKING:
    from packtrain.config.run import RunConfig
    from packtrain.train.header import Header

# A log is silent for this long at most, unless a single step takes longer.
SILENCE_S = 30.0
# Steps are timed for this long before their speed says when the run ends.
_ESTIMATE_S = 5.0
_SAMPLE_CHARS = 50
# Narrower than this, the bar has room for the loss only.
_FULL_WIDTH = 72

Record = dict[str, Any]


def train_aloud(
    config: "RunConfig", run: Path, *, resume: bool, preset: str | None = None, as_json: bool = False
) -> None:
    """Trains as `train.run.train` does, says what happens on standard error, and prints the outcome on standard output.

    `preset`: its name, if there is one, for the header and for what a new run records.
    """
    from packtrain.train.origin import describe_preset
    from packtrain.train.run import train

    try:
        with _speaking(config, preset) as speaker:
            outcome = train(
                config,
                run,
                resume=resume,
                on_start=speaker.on_start,
                on_step=speaker.on_step,
                on_event=speaker.on_event,
                preset=describe_preset(preset) if preset else None,
            )
    except Interrupted as stopped:
        stopped.command = continue_command(run)
        raise
    if not screen.is_main_rank():
        return
    if as_json:
        screen.print_json(outcome)
    else:
        _show_outcome(outcome, run)


def _show_outcome(outcome: Record, run: Path) -> None:
    tell = screen.console.print
    tell(
        f"step {outcome['step']} of {outcome['steps']}, saved in {outcome['checkpoint']}", soft_wrap=True, markup=False
    )
    if outcome.get("val_loss") is not None:
        tell(
            f"validation loss {outcome['val_loss']:.4f} nats per token, {outcome['val_bpb']:.4f} bits per byte",
            soft_wrap=True,
        )
        from packtrain.runs.bands import describe_standing
        from packtrain.runs.layout import RunLayout

        for line in describe_standing(RunLayout(run)):
            tell(line, soft_wrap=True, markup=False, style="dim")
    prompt = next(iter(outcome["prompts"]), "The ")
    show_next(write_command("generate", run, "--prompt", prompt), write_command("evaluate", run))


class Speaker:
    """What is said of one run. `log_every`: the steps at which a log gets a line, if there is time for it."""

    def __init__(
        self, log_every: int, preset: str | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log_every, self._preset, self._clock = log_every, preset, clock
        self._bar: Any = None
        self._task: Any = None
        self._shown: dict[str, str] = {}
        self._num_steps = 0
        self._best = float("inf")
        self._first: tuple[int, float] | None = None
        """The first step, and when it ended. It also compiles and warms up, so that the speed is measured from its end."""
        self._last_line: float | None = None
        self._has_estimate = False

    def attach(self, bar: Any) -> None:
        """From now on the figures of each step go into this bar, not into lines."""
        self._bar, self._task = bar, bar.add_task("train", total=None, figures="")
        # If the run is refused before its first step, the bar disappears and only the error stays.
        bar.live.transient = True

    def on_start(self, header: "Header") -> None:
        self._num_steps = header.num_steps
        screen.facts(describe(header, self._preset))
        if self._bar is not None:
            self._bar.live.transient = False
            self._bar.update(self._task, completed=header.step, total=header.num_steps)

    def on_step(self, record: Record) -> None:
        if "val_loss" in record:
            self._say(record["step"], self._describe_validation(record))
        if self._bar is not None:
            self._shown.update(figures(record))
            self._bar.update(self._task, completed=record["step"], figures=self._fit())
        if "loss" in record:
            self._after_step(record)

    def on_event(self, event: Record) -> None:
        """Events that are also warnings have been shown as such."""
        if event["event"] == "saved":
            self._say(event["step"], "saved")
        elif event["event"] == "sampled":
            for sample in event["samples"]:
                self._say(event["step"], f"sample: {_excerpt(sample)}")

    def _after_step(self, record: Record) -> None:
        now, step = self._clock(), record["step"]
        if self._first is None or step <= self._first[0]:
            # The first one, or the first after the run has rolled back to before it.
            self._first = step, now
        first, since = self._first
        left_s = (now - since) / (step - first) * (self._num_steps - step) if step > first else None
        if not self._has_estimate and left_s is not None and now - since >= _ESTIMATE_S:
            self._has_estimate = True
            if left_s > SILENCE_S:
                ends = f"ends about {_moment(left_s)}, in {duration(left_s)}"
                self._say(step, f"{ends} (measured over steps {first + 1:,} to {step:,})")
        if self._bar is None and self._is_line_due(step, now, since):
            self._last_line = now
            left = "" if left_s is None or step == self._num_steps else f"  {duration(left_s)} left"
            mfu = f"  MFU {record['mfu']:.0%}" if "mfu" in record else ""
            self._say(
                step,
                f"loss {record['loss']:.4f}  lr {record['lr']:.3g}  {record['tokens_per_s']:,.0f} tokens/s{mfu}{left}",
            )

    def _is_line_due(self, step: int, now: float, since: float) -> bool:
        """Often while a run is young, so that a short one shows its curve; after two minutes, every half minute."""
        if self._last_line is None or step == self._num_steps:
            return True
        waited = now - self._last_line
        return waited >= SILENCE_S or (step % self._log_every == 0 and waited >= min(SILENCE_S, (now - since) / 4))

    def _say(self, step: int, what: str) -> None:
        if self._bar is None:
            screen.tell(f"{f'step {step:,} of {self._num_steps:,}':<18}  {what}", is_log=True)
        else:
            # The bar says how many there are.
            screen.tell(f"step {step:<{len(f'{self._num_steps:,}')},}  {what}", is_log=False)

    def _describe_validation(self, record: Record) -> str:
        loss = record["val_loss"]
        lowest = f"  (the lowest was {self._best:.4f})" if loss > self._best else ""
        self._best = min(self._best, loss)
        parts = [
            f"{key.removeprefix('val_bpb/')} {value:.4f}" for key, value in record.items() if key.startswith("val_bpb/")
        ]
        each = f" ({', '.join(parts)})" if parts else ""
        return f"validation loss {loss:.4f}, {record['val_bpb']:.4f} bits per byte{each}{lowest}"

    def _fit(self) -> str:
        """The figures that the width of the screen has room for."""
        names = list(self._shown) if self._bar.console.width >= _FULL_WIDTH else ["loss"]
        return " ".join(f"{name} {self._shown[name]}" for name in names if name in self._shown)


def describe(header: "Header", preset: str | None = None) -> list[tuple[str, str]]:
    """The lines of a header: what each is about, and what it says."""
    tokens = header.num_steps * header.global_batch_tokens
    shape = f"{header.num_layers} layers x {header.hidden_size} wide, {short(header.num_parameters)} parameters"
    epochs = f"{header.datasets[0].epochs:.2f} epochs" if len(header.datasets) == 1 else "of a mixture"
    micro, accumulated = header.micro_batch_size, header.grad_accum_steps
    rows = header.global_batch_tokens // header.seq_len
    many = header.world_size > 1
    return [
        ("model", f"{preset}: {shape}" if preset else shape),
        *(
            (
                "dataset" if number == 0 else "",
                f"{reading.folder}, {short(reading.num_tokens)} tokens"
                + (f", {reading.epochs:.2f} epochs" if len(header.datasets) > 1 else ""),
            )
            for number, reading in enumerate(header.datasets)
        ),
        ("length", f"{header.num_steps:,} steps, {short(tokens)} tokens, {epochs}"),
        (
            "batch",
            f"{header.global_batch_tokens:,} tokens = {rows:,} rows of {header.seq_len:,}: micro-batches of {micro:,}"
            + (f" on each of {header.world_size} processes" if many else "")
            + (f", accumulated over {accumulated:,}" if accumulated > 1 else ", no accumulation"),
        ),
        ("precision", header.precision),
        ("device", f"{header.device} ({header.device_type})"),
        ("parallel", f"{header.parallel_mode.upper()}, {header.world_size} processes" if many else "one process"),
        ("kept in", str(header.folder)),
        ("start", _describe_start(header)),
        ("end", "estimated after the first steps"),
    ]


def _describe_start(header: "Header") -> str:
    if header.step:
        return f"resumed at step {header.step:,}"
    if header.source is None:
        return "step 0"
    steps = header.warmup_steps
    rate = f"warms up again over {steps:,} step{'s' * (steps != 1)}" if steps else "starts without a warm-up"
    return f"step 0, with the weights of {header.source}; the learning rate {rate}"


def figures(record: Record) -> dict[str, str]:
    """What the bar shows of a record, by name."""
    if "val_loss" in record:
        return {"bpb": f"{record['val_bpb']:.3f}"}
    mfu = f"{record['mfu']:.0%}" if "mfu" in record else "n/a"
    return {"loss": f"{record['loss']:.3f}", "tok/s": f"{record['tokens_per_s']:,.0f}", "MFU": mfu}


@contextlib.contextmanager
def _speaking(config: "RunConfig", preset: str | None) -> Iterator[Speaker]:
    """A speaker, with a bar during the block if someone watches it."""
    speaker = Speaker(config.log.every, preset)
    if not screen.is_watched():
        yield speaker
        return
    # Narrow, so that the figures fit in 80 columns.
    with screen.bar("{task.fields[figures]}", width=8) as bar:
        speaker.attach(bar)
        yield speaker


def _excerpt(sample: dict[str, str]) -> str:
    """A prompt and the first words of what follows, on one line."""
    prompt, text = (" ".join(sample[part].split()) for part in ("prompt", "text"))
    if len(text) > _SAMPLE_CHARS:
        text = text[:_SAMPLE_CHARS].rsplit(" ", 1)[0] + " …"
    return f"{prompt} → {text or '(the document ends here)'}"


def _moment(in_s: float) -> str:
    """The local time in that many seconds, with the day if it is another one."""
    now = datetime.datetime.now()
    then = now + datetime.timedelta(seconds=in_s)
    return then.strftime("%H:%M" if then.date() == now.date() else "%a %d %b %H:%M")
