"""Decides how many attacks of each kind are made, and writes their table into docs/reliability.md.

python -m benchmarks.attack                     all of them; about an hour on two cores
python -m benchmarks.attack --share 0.02        a fiftieth of them, for a look
python -m benchmarks.attack --only dataset run  some kinds; the page is not written
"""

import argparse
import functools
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.attack import bombs, cases, folders, kills, settings, sources
from benchmarks.attack.outcome import BAD, OUTCOMES, Trial
from benchmarks.attack.sound import load_modules, make_sound

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: python -m benchmarks.attack -->", "<!-- end of table -->"

# How many attacks of each kind there are.
COUNTS = {
    "dataset": 900,
    "run": 900,
    "export": 300,
    "words": 12_000,
    "file": 4_000,
    "source": 6_000,
    "card": 1_500,
    "kill prepare": 25,
    "kill train": 25,
    "signal prepare": 20,
    "signal train": 20,
}
KINDS = (*COUNTS, "case", "bomb")
# How many attacks on each target ended in each way.
Counts = dict[str, dict[str, int]]


def plan(sound: Path, share: float, only: Sequence[str]) -> Iterator[tuple[str, Callable[[Any], Trial], Sequence[Any]]]:
    """Kind by kind: what attacks, and the arguments of each attack."""
    for target in folders.TARGETS:
        if target in only:
            expected = folders.results_of_sound(sound, target)
            attack = functools.partial(folders.attack_folder, sound, target, expected=expected)
            yield target, attack, range(max(1, round(COUNTS[target] * share)))
    attacks: dict[str, Callable[[int], Trial]] = {
        "words": settings.attack_words,
        "file": settings.attack_file,
        "source": sources.attack_source,
        "card": sources.attack_card,
        "kill prepare": functools.partial(kills.attack_by_kill, sound, "prepare"),
        "kill train": functools.partial(kills.attack_by_kill, sound, "train"),
        "signal prepare": functools.partial(kills.attack_by_signal, sound, "prepare"),
        "signal train": functools.partial(kills.attack_by_signal, sound, "train"),
    }
    for kind, one in attacks.items():
        if kind in only:
            yield kind, one, range(max(1, round(COUNTS[kind] * share)))
    if "case" in only:
        yield "case", cases.attack_case, range(len(cases.CASES))
    if "bomb" in only:
        yield "bomb", bombs.attack_with_bomb, list(bombs.BOMBS)


def run_kind(kind: str, attack: Callable[[Any], Trial], arguments: Sequence[Any], processes: int) -> Counts:
    """Make the attacks of a kind, and count outcomes by target. Bad ones are printed as they are found."""
    counts: Counts = {}
    started = time.monotonic()
    # Bombs are measured one at a time.
    is_bomb = kind == "bomb"
    with ProcessPoolExecutor(1 if is_bomb else processes, multiprocessing.get_context("fork")) as pool:
        for trial in pool.map(attack, arguments, chunksize=1 if is_bomb else 4):
            found = counts.setdefault(trial.target, dict.fromkeys(OUTCOMES, 0))
            found[trial.outcome] += 1
            if trial.detail and (trial.outcome in BAD or kind in ("bomb", "case")):
                print(f"{trial.outcome}: {trial.target}: {trial.detail}\n", flush=True)
    print(f"{kind}: {len(arguments)} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return counts


def write_table(results: Mapping[str, Counts]) -> str:
    """A Markdown table: a row for each target, a column for each outcome."""
    lines = ["| what is attacked | tried | " + " | ".join(OUTCOMES) + " |", "| --- |" + " ---: |" * (len(OUTCOMES) + 1)]
    total = dict.fromkeys(OUTCOMES, 0)
    for target, found in (pair for kind in KINDS if kind in results for pair in results[kind].items()):
        total = {name: total[name] + found[name] for name in OUTCOMES}
        lines.append(_write_line(target, found))
    return "\n".join([*lines, _write_line("**all**", total)])


def _write_line(target: str, found: Mapping[str, int]) -> str:
    return f"| {target} | {sum(found.values()):,} | " + " | ".join(f"{found[name]:,}" for name in OUTCOMES) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--share", type=float, default=1.0, help="share of the attacks to make")
    parser.add_argument("--only", nargs="+", default=KINDS, choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--processes", type=int, default=2, help="attacks at a time")
    parser.add_argument(
        "--results", type=Path, help="JSON file with the counts of each kind; kinds in it are not made again"
    )
    given = parser.parse_args()
    results: dict[str, Counts] = {}
    if given.results is not None and given.results.exists():
        results = json.loads(given.results.read_text())
    with tempfile.TemporaryDirectory(prefix="packtrain-sound-") as work:
        sound = Path(work)
        make_sound(sound)
        load_modules(sound)
        for kind, attack, arguments in plan(sound, given.share, [kind for kind in given.only if kind not in results]):
            results[kind] = run_kind(kind, attack, arguments, given.processes)
            if given.results is not None:
                given.results.write_text(json.dumps(results, indent=1))
    table = write_table(results)
    print(table)
    if given.share == 1.0 and set(KINDS) <= set(results):
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        made = f"Made on {time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}."
        PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{table}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.exit(any(found[name] for counts in results.values() for found in counts.values() for name in BAD))


if __name__ == "__main__":
    main()
