"""Whether an input is read right or refused with a sentence, and a file trusted only after its hash: a few of benchmarks/attack."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from benchmarks.attack import settings, sources
from benchmarks.attack.cases import CASES, attack_case
from benchmarks.attack.outcome import BAD, READ_RIGHT, Trial


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number].kind}: {CASES[number].name}")
def test_what_went_wrong_elsewhere_is_read_right_or_refused(number: int) -> None:
    trial = attack_case(number)
    assert trial.outcome not in BAD, trial.detail
    assert trial.outcome == READ_RIGHT or CASES[number].may_refuse, trial.detail


@pytest.mark.parametrize(
    ("attack", "count"),
    [
        (settings.attack_words, 150),
        (settings.attack_file, 50),
        (sources.attack_source, 100),
        (sources.attack_card, 20),
    ],
    ids=["words", "files", "sources", "cards"],
)
def test_nonsense_is_refused_in_a_sentence(attack: Callable[[int], Trial], count: int) -> None:
    bad = [trial.detail for trial in map(attack, range(count)) if trial.outcome in BAD]
    assert not bad, bad[0]


@pytest.mark.very_slow
def test_damaged_folders_kills_and_signals() -> None:
    kinds = ("dataset", "run", "export", "kill prepare", "kill train", "signal prepare", "signal train")
    command = [sys.executable, "-m", "benchmarks.attack", "--share", "0.03", "--only", *kinds]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
