"""Decides how `diff` shows two runs."""

from pathlib import Path
from typing import Any

from packtrain.cli import screen
from packtrain.report.comparison import RunDifference, RunResults
from packtrain.report.figures import duration, short


def show_difference(a: Path, b: Path, found: RunDifference) -> None:
    """Prints how the runs A and B differ: settings, machine, results, and whether these can be compared."""
    title = screen.escape(f"A: {a}\nB: {b}")
    if found.settings:
        _show_pairs("setting", found.settings, title)
    else:
        screen.console.print(f"{title}\n\nEvery setting is the same.", soft_wrap=True)
    if found.machine:
        screen.console.print()
        _show_pairs("machine", found.machine)
    screen.console.print()
    _show_results(found)
    screen.console.print()
    _say(_judge_data(found))
    for name, missing in zip("AB", found.missing, strict=True):
        for sentence in missing:
            _say(f"{name}: {sentence}")


def _show_results(found: RunDifference) -> None:
    table = screen.table("result", "A", "B")
    for name, describe in _RESULTS.items():
        cells = [describe(result) for result in found.results]
        if cells != [_NOTHING, _NOTHING]:
            table.add_row(name, *cells)
    if found.at_same_tokens is not None:
        tokens, *bits = found.at_same_tokens
        table.add_row(f"bits per byte after {short(tokens)} tokens", *(f"{value:.4f}" for value in bits))
    screen.print_table(table)


def _judge_data(found: RunDifference) -> str:
    if found.same_data is None:
        return "Whether they were trained on the same data is not known: a manifest.json does not say."
    if not found.same_data:
        return "They were trained on different data, so their validation losses are of different texts: do not compare them."
    if not found.same_held_out:
        return (
            "They were trained on the same data, but validated on different rows of it (data.seq_len, data.packing or "
            "evaluate.tokens): do not compare their validation losses."
        )
    return "They were trained on the same data and validated on the same text."


_NOTHING = "–"


def _decimal(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.4f}"


def _progress(result: RunResults) -> str:
    if result.step is None:
        return _NOTHING
    return f"{result.step:,}" + (f" of {result.steps:,}" if result.steps else "")


def _best(result: RunResults) -> str:
    return _NOTHING if result.best_bpb is None else f"{result.best_bpb:.4f} (step {result.best_step:,})"


_RESULTS = {
    "state": lambda result: result.state,
    "step": _progress,
    "tokens": lambda result: _NOTHING if result.tokens is None else short(result.tokens),
    "parameters": lambda result: _NOTHING if result.parameters is None else short(result.parameters),
    "last training loss": lambda result: _decimal(result.loss),
    "last validation loss": lambda result: _decimal(result.val_loss),
    "last bits per byte": lambda result: _decimal(result.val_bpb),
    "lowest bits per byte": _best,
    "time in steps": lambda result: _NOTHING if result.train_s is None else duration(result.train_s),
    "tokens per second": lambda result: _NOTHING if result.tokens_per_s is None else f"{result.tokens_per_s:,.0f}",
}


def _show_pairs(what: str, pairs: dict[str, tuple[Any, Any]], title: str | None = None) -> None:
    table = screen.table(what, "A", "B", title=title)
    for key, values in pairs.items():
        table.add_row(screen.escape(key), *(screen.escape(_value(value)) for value in values))
    screen.print_table(table)


def _value(value: Any) -> str:
    return "unset" if value is None else str(value)


def _say(text: str) -> None:
    screen.console.print(text, soft_wrap=True, markup=False)
