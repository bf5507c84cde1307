"""Decides what is compared with what, and lays it out: final figures, and what it takes to reach another recipe's."""

import argparse
import fnmatch
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]
BEGIN, END = "<!-- learn: begin -->", "<!-- learn: end -->"
_COLUMNS = (
    *("recipe", "parameters", "tokens", "seeds", "bits per byte"),
    *("against", "tokens to it: finished", "on the way", "minutes", "minutes to it", "tokens/s"),
)


def describe_line(line: Line) -> str:
    """One line for people."""
    if line["mean"] is None:
        return f"{line['name']}: diverged ({line['failed']})"
    minutes = f", {line['minutes']:.1f} minutes a seed" if line["minutes"] else ""
    return (
        f"{line['name']}: {_figure(line)} bits per byte on {line['corpus']['name']}, {line['tokens']:,} tokens{minutes}"
    )


def lay_out_tables(lines: Sequence[Line], options: argparse.Namespace) -> str:
    """A table for each held-out text, with a line of what it is. Raises ConfigError if there is nothing to show or compare with."""
    from packtrain.errors import ConfigError

    known = sorted({line["name"] for line in lines if options.corpus in (None, line["corpus"]["name"])})
    if not known:
        raise ConfigError(f"{options.results} has no such results; write `python -m benchmarks.learn train FILE` first")
    if options.against is not None and options.against not in known:
        raise ConfigError(f"there is no recipe '{options.against}' in {options.results}; write {', '.join(known[:8])}")
    groups: dict[tuple[str, float | None], list[Line]] = {}
    for line in choose_lines(lines, options):
        groups.setdefault((line["corpus"]["held_out"], line["corpus"].get("share_of_text")), []).append(line)
    parts = []
    for (_, share), group in groups.items():
        corpus = group[0]["corpus"]
        counts = f"{corpus['documents']:,} held-out documents of {corpus['held_out_bytes']:,} bytes"
        text = "" if share is None else f", {share:g} of the training text"
        table = "\n".join(_lay_out(list_rows(group, options.against), options.markdown))
        parts.append(f"{corpus['name']}{text}: {counts}, each by itself\n\n{table}\n")
    return "\n".join(parts)


def put_between_marks(page: Path, tables: str) -> None:
    """Replaces what a page has between its marks. Raises ConfigError if it has none."""
    from packtrain.errors import ConfigError

    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if BEGIN not in text or END not in text:
        raise ConfigError(f"{page} is not a page with the marks {BEGIN} and {END}; add them where the tables belong")
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def choose_lines(lines: Sequence[Line], options: argparse.Namespace) -> list[Line]:
    """Those of the corpus and recipes that were asked for, and the reference's."""
    return [
        line
        for line in lines
        if options.corpus in (None, line["corpus"]["name"])
        and (_is_wanted(line["name"], options.only) or line["name"] == options.against)
    ]


def list_rows(lines: Sequence[Line], against: str | None) -> list[list[str]]:
    """The cells of each line, best recipe first, each recipe's budgets together."""
    recipes: dict[tuple[str, str], list[Line]] = {}
    lines = sorted(lines, key=lambda line: line["tokens"])
    for line in lines:
        recipes.setdefault((line["name"], _settings(line)), []).append(line)
    goal = _final([line for line in lines if line["name"] == against])
    spread = _usual_spread(lines)
    ordered = sorted(recipes.values(), key=lambda runs: min(_mean(run) for run in runs))
    return [_row(line, runs, goal, spread) for runs in ordered for line in runs]


def _settings(line: Line) -> str:
    """What must be equal in all budgets of one recipe; a name alone may have been given twice. A warm-up shrinks with the budget."""
    kept = {key: value for key, value in line["settings"].items() if key != "schedule.warmup_steps"}
    return json.dumps(kept, sort_keys=True)


def _row(line: Line, budgets: Sequence[Line], goal: Line | None, usual: float | None) -> list[str]:
    parameters = f"{line['parameters'] / 1e6:.2f}M" if line["parameters"] else "unknown"
    cells = [line["name"], parameters, f"{line['tokens']:,}", str(len(line["seeds"]))]
    if line["mean"] is None:
        return [*cells, "diverged", *[""] * 6]
    cells.append(_figure(line))
    if goal is None:
        return [*cells, "", "", "", *_cost(line, "")]
    target = goal["mean"]
    finished = find_finished(budgets, target) if line is budgets[-1] else None
    on_the_way = find_on_the_way(line["curve"], target)
    words, minutes = "", ""
    if finished is not None:
        tokens, is_most = finished
        at_most = "at most " * is_most
        words = f"{at_most}{tokens:,.0f} ({tokens / goal['tokens']:.2f})"
        if line["minutes"] and goal["minutes"]:
            took = tokens * line["minutes"] / line["tokens"]
            minutes = f"{at_most}{took:.1f} ({took / goal['minutes']:.2f})"
    way = "" if on_the_way is None else f"{on_the_way:,.0f} ({on_the_way / goal['tokens']:.2f})"
    return [
        *cells,
        compare(line, goal, usual),
        words,
        way,
        *_cost(line, minutes),
    ]


def _cost(line: Line, minutes_to_it: str) -> list[str]:
    minutes, rate = line["minutes"], line["tokens_per_s"]
    return [f"{minutes:.1f}" if minutes else "", minutes_to_it, f"{rate:,.0f}" if rate else ""]


def compare(line: Line, goal: Line, usual: float | None) -> str:
    """The difference of two means, or "nothing" if it is within the spread over seeds: the larger of both, or else the usual one."""
    if line is goal:
        return "the reference"
    difference = line["mean"] - goal["mean"]
    spreads = [found["spread"] for found in (line, goal) if found["spread"] is not None]
    spread = max(spreads, default=usual)
    if spread is None:
        return f"{difference:+.4f} (one seed, spread unknown)"
    return "nothing" if abs(difference) <= spread else f"{difference:+.4f}"


def find_finished(budgets: Iterable[Line], target: float) -> tuple[float, bool] | None:
    """Tokens at which finished runs of a recipe reach `target` bits per byte, and whether it is a bound from above.

    Interpolated between two budgets, linear in the logarithm of tokens. None if no budget reaches it.
    """
    points = [(line["tokens"], line["mean"]) for line in budgets if line["mean"] is not None]
    for number, (tokens, bits) in enumerate(points):
        if bits <= target:
            if number == 0:
                return tokens, bits < target
            return _interpolate(points[number - 1], (tokens, bits), target), False
    return None


def find_on_the_way(curve: Sequence[Sequence[float]], target: float) -> float | None:
    """Tokens at which a run's own curve reaches `target`, interpolated in the same way. None if it does not, or has one point."""
    for number, (tokens, bits) in enumerate(curve):
        if bits <= target:
            return tokens if number == 0 else _interpolate(curve[number - 1], (tokens, bits), target)
    return None


def _interpolate(before: Sequence[float], after: Sequence[float], target: float) -> float:
    share = (before[1] - target) / (before[1] - after[1])
    return math.exp(math.log(before[0]) + share * (math.log(after[0]) - math.log(before[0])))


def _final(runs: Sequence[Line]) -> Line | None:
    done = [run for run in runs if run["mean"] is not None]
    return done[-1] if done else None


def _usual_spread(lines: Sequence[Line]) -> float | None:
    """Root of the mean square of the spreads that are known."""
    spreads = [line["spread"] for line in lines if line["spread"] is not None]
    return math.sqrt(math.fsum(spread**2 for spread in spreads) / len(spreads)) if spreads else None


def _mean(line: Line) -> float:
    return math.inf if line["mean"] is None else float(line["mean"])


def _figure(line: Line) -> str:
    spread = "(one seed)" if line["spread"] is None else f"± {line['spread']:.4f}"
    # A character is a byte there, and the field speaks of nats.
    nats = f", {line['loss']:.4f} nats a character" if line["corpus"]["name"] == "shakespeare" else ""
    return f"{line['mean']:.4f} {spread}{nats}"


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _lay_out(rows: Sequence[Sequence[str]], is_markdown: bool) -> list[str]:
    used = [number for number in range(len(_COLUMNS)) if number < 5 or any(row[number] for row in rows)]
    table = [[row[number] for number in used] for row in [_COLUMNS, *rows]]
    if is_markdown:
        head, *rest = ["| " + " | ".join(row) + " |" for row in table]
        return [head, "| " + " | ".join("---" for _ in used) + " |", *rest]
    widths = [max(len(row[column]) for row in table) for column in range(len(used))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
