"""How long `packtrain report` takes for a run of many steps, and what `report --watch` costs a run that it follows.

    python -m benchmarks.report RUN --steps 200000 --rounds 5
    python -m benchmarks.report RUN --watched-rounds 6 --dataset DATASET --json report.json

For the first, the metrics of RUN, any run of `packtrain train`, are repeated until every step has a line, with the loss of one step
made a spike, which must be on the page. Each round is a process of its own. For the second, the demo is trained with nobody watching,
with a watcher, with nobody, and so on; a watcher is the server and a client that asks as often as the page in a browser does.
"""

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packtrain.runs.layout import RunLayout

# A loss that no line of RUN has. It must be on the page as it is.
_SPIKE = 987.5
_PACKTRAIN = (sys.executable, "-m", "packtrain")
# As the page asks while something changes.
_ASKS_EVERY_S = 2.0
_LOGGED = ("evaluate.every=0", "log.every=1", "train.micro_batch_size=8", "parallel.lanes=1")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what `--json` writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run with some steps and validations")
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--watched-rounds", type=int, default=0, help="pairs of runs, one of them watched")
    parser.add_argument("--train-steps", type=int, default=60, help="steps of each of these runs")
    parser.add_argument(
        "--dataset", type=Path, help="a dataset made with `packtrain prepare stdlib`; default: make one"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.rounds:
            found["report"] = time_report(options.run, Path(folder), options.steps, options.rounds)
        if options.watched_rounds:
            dataset = options.dataset or _prepare(Path(folder) / "stdlib")
            found["watch"] = time_watched(dataset, Path(folder), options.watched_rounds, options.train_steps)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return found


def time_report(run: Path, folder: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Medians of whole processes, in seconds and bytes, with a spike that must be found on the page."""
    long = folder / "long"
    metrics_bytes = lengthen(run, long, steps)
    wall, processor, peak = [], [], 0
    for _ in range(rounds):
        began = time.perf_counter()
        process = subprocess.Popen([*_PACKTRAIN, "report", str(long)], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall.append(time.perf_counter() - began)
        # wait4 has reaped the process, so Popen must not wait for it again.
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        processor.append(usage.ru_utime + usage.ru_stime)
        peak = max(peak, usage.ru_maxrss * 1024)
    page = (long / "report.html").read_text(encoding="utf-8")
    assert str(_SPIKE) in page, "the page hides the spike"
    found = {
        "steps": steps,
        "metrics_bytes": metrics_bytes,
        "page_bytes": len(page),
        "seconds": statistics.median(wall),
        "processor_seconds": statistics.median(processor),
        "peak_bytes": peak,
    }
    print(
        f"report of {steps:,} steps ({metrics_bytes / 1e6:.1f} MB of metrics): {found['seconds']:.2f} s, "
        f"{found['processor_seconds']:.2f} s of the processor, {peak / 1e6:,.0f} MB; the spike is on the page"
    )
    return found


def lengthen(run: Path, long: Path, steps: int) -> int:
    """Writes into `long` what the report reads of `run`, with a line of metrics for each of that many steps; gives their bytes."""
    long.mkdir()
    old, new = RunLayout(run), RunLayout(long)
    for name in ("config", "manifest", "events", "evaluation"):
        path: Path = getattr(old, name)
        if path.exists():
            getattr(new, name).write_bytes(path.read_bytes())
    lines = [json.loads(line) for line in old.metrics.read_text(encoding="utf-8").splitlines()]
    tokens = max(line["tokens"] / line["step"] for line in lines if "tokens" in line)
    step = 0
    with new.metrics.open("w", encoding="utf-8") as file:
        while step < steps:
            for line in lines[: steps - step]:
                step += "loss" in line
                changed = {"step": max(step, 1)}
                if "loss" in line:
                    changed["tokens"] = round(tokens * step)
                    changed |= {"loss": _SPIKE} if step == steps // 2 + 7 else {}
                file.write(json.dumps({**line, **changed}) + "\n")
    return new.metrics.stat().st_size


def time_watched(dataset: Path, folder: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Runs in turns, nobody watching and watched: the ratio of their median steps, pair by pair, and what the watcher took."""
    words = ["train", "demo", f"data.dataset={dataset}", "model.vocab_size=4096", f"train.steps={steps}", *_LOGGED]
    ratios, shares, answers = [], [], []
    for number in range(rounds):
        seconds = {}
        # Each goes first as often as the other.
        for is_watched in (False, True) if number % 2 == 0 else (True, False):
            run = folder / f"run-{number}-{is_watched}"
            process = subprocess.Popen(
                [*_PACKTRAIN, *words, "--run", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            with watch(run, process) if is_watched else contextlib.nullcontext({}) as watcher:
                assert process.wait() == 0
            seconds[is_watched] = _median_step(run)
            if is_watched:
                shares.append(watcher["processor_seconds"] / watcher["seconds"])
                answers.append(watcher["answers"])
        ratios.append(seconds[True] / seconds[False])
        print(f"pair {number + 1}: a step takes {ratios[-1]:.3f} times as long when watched", flush=True)
    found = {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "processor_share": statistics.median(shares),
        "answers": statistics.median(answers),
    }
    print(
        f"watched over not watched, median of {rounds} pairs: {found['ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
        f"the watcher answered {found['answers']:.0f} times and took {found['processor_share']:.1%} of a core"
    )
    return found


@contextlib.contextmanager
def watch(run: Path, process: subprocess.Popen[bytes]) -> Iterator[dict[str, float]]:
    """Follows a run from when its folder is there until the block ends; then says what the server took."""
    while not RunLayout(run).metrics.exists() and process.poll() is None:
        time.sleep(0.05)
    server = subprocess.Popen(
        [*_PACKTRAIN, "report", str(run), "--watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    address = json.loads("".join(iter(server.stdout.readline, "}\n")) + "}")["address"]
    # From here on: importing is over before the page is open.
    started, began = _processor_seconds(server.pid), time.perf_counter()
    ended, found = threading.Event(), {"answers": 0.0}
    asking = threading.Thread(target=_ask, args=(address, ended, found))
    asking.start()
    try:
        yield found
    finally:
        ended.set()
        asking.join()
        found["processor_seconds"] = _processor_seconds(server.pid) - started
        found["seconds"] = time.perf_counter() - began
        server.terminate()
        server.wait()


def _ask(address: str, ended: threading.Event, found: dict[str, float]) -> None:
    place, tag = urlsplit(address).netloc, ""
    for _ in count():
        connection = http.client.HTTPConnection(place, timeout=60)
        connection.request("GET", "/", headers={"If-None-Match": tag})
        answer = connection.getresponse()
        answer.read()
        tag = answer.headers["ETag"]
        found["answers"] += 1
        connection.close()
        if ended.wait(_ASKS_EVERY_S):
            return


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _median_step(run: Path) -> float:
    """Seconds of a step, without the first few, which are slower."""
    lines = map(json.loads, RunLayout(run).metrics.read_text(encoding="utf-8").splitlines())
    return statistics.median([line["step_s"] for line in lines if "step_s" in line][5:])


def _prepare(folder: Path) -> Path:
    subprocess.run([*_PACKTRAIN, "prepare", "stdlib", "--out", str(folder)], check=True, capture_output=True)
    return folder


if __name__ == "__main__":
    main()
