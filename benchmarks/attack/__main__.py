"""Decides how many attacks of each kind are made, and writes their table into docs/reliability.md.

python -m benchmarks.attack                     all of them; about an hour on two cores
python -m benchmarks.attack --share 0.02        a fiftieth of them, for a look
python -m benchmarks.attack --only dataset run  some kinds; the page is not written
"""

import argparse
import collections
import functools
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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


def plan(sound: Path, share: float, only: Sequence[str]) -> Iterator[tuple[str, Callable[[Any], Trial], Sequence[Any]]]:
    """Kind by kind: what attacks, and the arguments of each attack."""
    for target in folders.TARGETS:
        if not only or target in only:
            expected = folders.results_of_sound(sound, target)
            attack = functools.partial(folders.attack_folder, sound, target, expected=expected)
            yield target, attack, range(round(COUNTS[target] * share))
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
        if not only or kind in only:
            yield kind, one, range(max(1, round(COUNTS[kind] * share)))
    if not only or "case" in only:
        yield "case", cases.attack_case, range(len(cases.CASES))
    if not only or "bomb" in only:
        yield "bomb", bombs.attack_with_bomb, list(bombs.BOMBS)


def run_all(sound: Path, share: float, only: Sequence[str], processes: int) -> list[Trial]:
    """Make the attacks. Bad ones are printed as they are found."""
    trials: list[Trial] = []
    for kind, attack, arguments in plan(sound, share, only):
        started = time.monotonic()
        # Bombs are measured one at a time.
        workers = 1 if kind == "bomb" else processes
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            for trial in pool.map(attack, arguments, chunksize=1 if kind == "bomb" else 4):
                trials.append(trial)
                if trial.detail and (trial.outcome in BAD or kind in ("bomb", "case")):
                    print(f"{trial.outcome}: {trial.target}: {trial.detail}\n", flush=True)
        print(f"{kind}: {len(arguments)} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return trials


def write_table(trials: Sequence[Trial]) -> str:
    """A Markdown table: a row for each kind of target, a column for each outcome."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for trial in trials:
        counts[trial.target][trial.outcome] += 1
    lines = ["| what is attacked | tried | " + " | ".join(OUTCOMES) + " |", "| --- |" + " ---: |" * (len(OUTCOMES) + 1)]
    for target, found in counts.items():
        lines.append(f"| {target} | {found.total():,} | " + " | ".join(f"{found[name]:,}" for name in OUTCOMES) + " |")
    total = collections.Counter(trial.outcome for trial in trials)
    lines.append(f"| **all** | {len(trials):,} | " + " | ".join(f"{total[name]:,}" for name in OUTCOMES) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--share", type=float, default=1.0, help="share of the attacks to make")
    parser.add_argument(
        "--only", nargs="+", default=[], help="kinds of attacks: " + ", ".join([*COUNTS, "case", "bomb"])
    )
    parser.add_argument("--processes", type=int, default=2, help="attacks at a time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packtrain-sound-") as work:
        sound = Path(work)
        make_sound(sound)
        load_modules(sound)
        trials = run_all(sound, given.share, given.only, given.processes)
    table = write_table(trials)
    print(table)
    if not given.only and given.share == 1.0:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        made = f"Made on {time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}."
        PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{table}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.exit(any(trial.outcome in BAD for trial in trials))


if __name__ == "__main__":
    main()
