"""What an optimizer costs or gains in loss: trains a tiny model with each, from the same seeds, on the same rows.

    python -m benchmarks.curves --seeds 3 --steps 300 --dataset DIR

Trains the `demo` shape, shrunk by `--hidden`, with every optimizer and seed. Each line of the output has the validation
losses of one optimizer's runs, their mean and their spread over seeds. A difference within the spread of `adamw` is noise.
All runs use the preset's learning rate, batch and schedule.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

OPTIMIZERS = ("adamw", "adamw8bit", "adamw4bit", "muon", "normuon")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return what `--json` writes."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="packtrain-curves-") as scratch:
        dataset = options.dataset or _prepared(Path(scratch))
        losses = {
            name: [_final_loss(name, seed, dataset, options, Path(scratch)) for seed in range(options.seeds)]
            for name in options.optimizers
        }
    report = {"steps": options.steps, "hidden_size": options.hidden, "lr": options.lr, "val_loss": losses}
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=128, help="hidden size of the model")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument(
        "--dataset", type=Path, help="a prepared dataset of vocabulary 4096; unset: the embedded corpus"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def _prepared(folder: Path) -> Path:
    from packtrain.config.load import load_recipe
    from packtrain.prepare.run import prepare

    prepare(load_recipe("stdlib").config, folder / "dataset")
    return folder / "dataset"


def _final_loss(name: str, seed: int, dataset: Path, options: argparse.Namespace, scratch: Path) -> float:
    from packtrain.config.load import load_run_config
    from packtrain.train.run import train

    settings = [
        f"data.dataset={dataset}",
        f"optim.name={name}",
        f"optim.lr={options.lr}",
        f"train.seed={seed}",
        f"train.steps={options.steps}",
        f"model.hidden_size={options.hidden}",
        f"model.intermediate_size={3 * options.hidden}",
        "train.precision=fp32",
        "checkpoint.every=0",
        f"evaluate.every={options.steps}",
        "evaluate.prompts=[]",
    ]
    loss = train(load_run_config("demo", settings).config, scratch / f"{name}-{seed}", resume=False)["val_loss"]
    print(f"{name} seed {seed}: {loss:.4f}", flush=True)
    return float(loss)


def _print(report: dict[str, Any]) -> None:
    print(f"validation loss in nats a token after {report['steps']} steps, hidden size {report['hidden_size']}")
    for name, losses in report["val_loss"].items():
        spread = f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else "n/a"
        each = "  ".join(f"{loss:.4f}" for loss in losses)
        print(f"  {name:<10} mean {statistics.mean(losses):.4f}  deviation {spread}  each {each}")


if __name__ == "__main__":
    main()
