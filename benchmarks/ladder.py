"""How well a ladder predicts: it climbs one, then trains the preset, which no fit has seen, and compares.

    python -m benchmarks.ladder demo train.steps=400 --budget 30m --work FOLDER

The text is the embedded corpus with a vocabulary of `--vocabulary`: with the demo's own, runs of minutes still learn how frequent
each token is, and no law holds. What is finished in `--work` is not done again, so
that the benchmark can be stopped and run again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return what `--json` writes."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="packtrain-ladder-") as scratch:
        report = _measure(options, options.work or Path(scratch))
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ladder", description=__doc__)
    parser.add_argument("preset", nargs="?", default="demo")
    parser.add_argument("settings", nargs="*", default=[], help="KEY=VALUE, as of `packtrain train`")
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--budget", default="30m")
    parser.add_argument("--work", type=Path, help="folder to keep the dataset, the ladder and the run in")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def _measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    from packtrain.config.load import load_recipe, load_run_config
    from packtrain.ladder.budget import parse_budget
    from packtrain.ladder.climb import climb
    from packtrain.prepare.run import prepare
    from packtrain.train.run import train

    prepare(load_recipe("stdlib", [f"tokenizer.vocab_size={options.vocabulary}"]).config, work / "dataset")
    settings = [f"data.dataset={work / 'dataset'}", f"model.vocab_size={options.vocabulary}", *options.settings]
    config = load_run_config(options.preset, settings).config
    record = climb(options.preset, config, parse_budget(options.budget), work / "ladder", on_end=_print_run)
    # The rows that the ladder was validated on.
    held_out = record.runs[0].config["evaluate"]["tokens"]
    config = load_run_config(options.preset, [*settings, f"evaluate.tokens={held_out}"]).config
    outcome = train(config, work / "run", resume=True)
    found, checked = record.prediction, record.held_out
    assert found is not None
    return {
        "runs": [run.model_dump(exclude={"config"}) for run in record.runs],
        "law": record.law.model_dump() if record.law else None,
        "held_out": {**checked.model_dump(), "error": checked.error} if checked else None,
        "prediction": found.model_dump(),
        "measured": {"loss": outcome["val_loss"], "bits_per_byte": outcome["val_bpb"]},
        "error": found.loss / outcome["val_loss"] - 1,
        "flops_over_largest": record.flops / max(run.flops for run in record.runs),
        "flops_over_ladder": record.flops / sum(run.flops for run in record.runs),
    }


def _print_run(run: Any) -> None:
    print(f"{run.parameters:>12,} parameters {run.tokens:>12,} tokens: {run.loss or float('nan'):.4f}", flush=True)


def _print(report: dict[str, Any]) -> None:
    found, measured, checked = report["prediction"], report["measured"], report["held_out"]
    print(f"law: {report['law']}")
    if checked:
        print(
            f"largest size, held out: predicted {checked['predicted']:.4f}, measured {checked['measured']:.4f} ({checked['error']:+.2%})"
        )
    print(
        f"the preset: predicted {found['loss']:.4f} ({found['low']:.4f} to {found['high']:.4f}), measured {measured['loss']:.4f} "
        f"({report['error']:+.2%}); its FLOPs are {report['flops_over_largest']:.1f} times those of the largest run, "
        f"{report['flops_over_ladder']:.1f} times those of the ladder"
    )


if __name__ == "__main__":
    main()
