"""What loss a preset has on a corpus, by tokens: makes an entry of src/packtrain/runs/bands.json from finished runs of several seeds.

    for seed in 1 2 3 4 5; do packtrain train demo data.dataset=DIR train.seed=$seed --run RUNS/$seed; done
    python -m benchmarks.bands RUNS/* --preset demo --corpus "Python's standard library" --kind stdlib

The band is where another seed's validation loss lies in 95 of 100 cases: the mean of the runs, with Student's t for their number times
their spread times sqrt(1 + 1/n) on both sides (a prediction interval, of the normal distribution). The spread is relative to the
loss and the same at all steps: the root of the mean of its squares. Fewer than three runs have none that means anything; then give
that of other runs by --spread (standard deviation over mean) and --spread-seeds.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "src" / "packtrain" / "runs" / "bands.json"
# Student's t, two-sided 95 %, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_SAMPLE_CHARS = 160
_SAMPLES = 4


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Make the entry, put it in the place of the preset's earlier one on that corpus, and return it."""
    options = _parser().parse_args(arguments)
    runs = [_read_validations(run) for run in options.runs]
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = {step: [run[step] for run in runs] for step in steps}
    if options.spread is None:
        spreads = [statistics.stdev(found) / statistics.mean(found) for found in values.values()]
        spread, seeds = math.sqrt(statistics.mean(each**2 for each in spreads)), len(runs)
    else:
        spread, seeds = options.spread, options.spread_seeds
    half = _T[seeds - 1] * spread * math.sqrt(1 + 1 / seeds)
    tokens = _tokens_per_step(options.runs[0])
    points = [
        [step * tokens, *(round(statistics.mean(found) * (1 + side * half), 4) for side in (-1, 1))]
        for step, found in values.items()
    ]
    entry = {
        "preset": options.preset,
        "corpus": options.corpus,
        "corpus_source": {"kind": options.kind, **({"repo": options.repo} if options.repo else {})},
        "source": options.source,
        "points": points,
        "samples": _choose_samples(options.runs[0]),
    }
    known = [e for e in json.loads(FILE.read_text()) if (e["preset"], e["corpus"]) != (options.preset, options.corpus)]
    FILE.write_text(json.dumps([entry, *known], indent=1, ensure_ascii=False) + "\n")
    print(f"{len(points)} points of {len(runs)} runs, {half:.1%} on both sides, in {FILE}")
    return entry


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bands", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--corpus", required=True, help="its name, for people")
    parser.add_argument("--kind", required=True, help="source.kind of its recipe")
    parser.add_argument("--repo", help="source.repo of its recipe")
    parser.add_argument("--source", required=True, help="who measured it, when and how many seeds")
    parser.add_argument("--spread", type=float, help="standard deviation over mean, of other runs")
    parser.add_argument("--spread-seeds", type=int, default=3)
    return parser


def _read_validations(run: Path) -> dict[int, float]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["val_bpb"] for line in lines if "val_bpb" in line}


def _tokens_per_step(run: Path) -> int:
    from packtrain.runs.layout import RunLayout, load_config

    return load_config(RunLayout(run)).train.global_batch_tokens


def _choose_samples(run: Path) -> list[dict[str, Any]]:
    """Samples of steps whose losses are evenly spread between the first and the last; of each step the first prompt."""
    losses = _read_validations(run)
    written = [step for step in losses if (run / "samples" / f"step-{step:08d}.jsonl").is_file()]
    low, high = losses[written[-1]], losses[written[0]]
    wanted = [high + (low - high) * number / (_SAMPLES - 1) for number in range(_SAMPLES)]
    steps = sorted({min(written, key=lambda step, want=want: abs(losses[step] - want)) for want in wanted})
    chosen = []
    for step in steps:
        first = json.loads((run / "samples" / f"step-{step:08d}.jsonl").read_text().splitlines()[0])
        shown = {"prompt": first["prompt"], "text": first["text"][:_SAMPLE_CHARS]}
        chosen.append({"bits_per_byte": round(losses[step], 3), "step": step, **shown})
    return chosen


if __name__ == "__main__":
    main()
