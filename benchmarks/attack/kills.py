"""Decides how preparations and runs are killed and stopped at random moments, and what must be left of them."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.attack.outcome import LOST, READ_RIGHT, STOPPED, TRACEBACK, WRONG, Trial, call_main, run_apart
from benchmarks.attack.sound import SETTINGS, SOURCE, copy_sound

_KILLS = 3
_LONGEST_S = 60.0
PREPARE = ("prepare", "stdlib", *SOURCE, "--out", "ds")
TRAIN = ("train", "demo", *SETTINGS, "--run", "run", "--resume")


def attack_by_kill(sound: Path, verb: str, seed: int) -> Trial:
    """Kill `prepare` or `train` up to three times, let it end, and compare every byte with what was never killed."""
    draw = random.Random(f"kill {verb} {seed}")
    words, result = (PREPARE, "ds") if verb == "prepare" else (TRAIN, "run/checkpoints")
    with tempfile.TemporaryDirectory(prefix="packtrain-attack-") as work:
        folder = Path(work)
        copy_sound(sound, folder, ["source"] if verb == "prepare" else ["ds"])
        kills = 0
        for _ in range(_KILLS):
            kills += _start_and_kill(list(words), folder, draw.uniform(0.0, 1.5))
        ended = run_apart(lambda: call_main(list(words)), folder)
        outcome = ended.judge(lambda: _files(folder / result) == _files(sound / result))
    detail = "" if outcome == READ_RIGHT else f"seed {seed}, {kills} kills: exit {ended.code} {ended.err[-800:]}"
    return Trial(f"{verb}, killed", f"{kills} kills", outcome, detail)


def attack_by_signal(sound: Path, verb: str, seed: int) -> Trial:
    """Send SIGINT or SIGTERM within the first seconds: exit code 3 and one sentence, or 0 if it had ended.

    Not before Python itself has started: until then, none of our code can answer.
    """
    draw = random.Random(f"signal {verb} {seed}")
    number = draw.choice([signal.SIGINT, signal.SIGTERM])
    words = PREPARE if verb == "prepare" else TRAIN
    delay = draw.uniform(0.4, 7.0)
    with tempfile.TemporaryDirectory(prefix="packtrain-attack-") as work:
        folder = Path(work)
        copy_sound(sound, folder, ["source", "ds"] if verb == "train" else ["source"])
        process = subprocess.Popen(
            [sys.executable, "-m", "packtrain", *words],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        time.sleep(delay)
        (os.killpg if draw.random() < 0.5 else os.kill)(process.pid, number)
        try:
            _, err = process.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, err = process.communicate()
    code = process.returncode
    outcome = STOPPED if code == 3 and "stopped" in err else READ_RIGHT if code == 0 else LOST
    if "Traceback" in err:
        outcome = TRACEBACK
    elif code == 2:
        outcome = WRONG
    fine = outcome in (STOPPED, READ_RIGHT)
    detail = "" if fine else f"seed {seed}, {number.name} after {delay:.2f} s: exit {code} {err[-800:]}"
    return Trial(f"{verb}, stopped in its first seconds", number.name, outcome, detail)


def _start_and_kill(words: list[str], folder: Path, delay: float) -> int:
    """Kill a fork that runs the command, after `delay` seconds; 0 if it had already ended."""
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.setsid()
            call_main(words)
        finally:
            os._exit(0)
    time.sleep(delay)
    was_running = os.waitpid(child, os.WNOHANG)[0] == 0
    if was_running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return int(was_running)


def _files(folder: Path) -> dict[str, bytes]:
    kept = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("logs.json", ".lock"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in kept}
