"""`packtrain demo`: every step from text to report on the embedded corpus, by the commands that a user would type."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.following import show_next, write_command

PROMPTS = ("def __init__(self", "The ")


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for everything that the demo writes.")
    ] = Path("packtrain-demo"),
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values of the training preset to set.")
    ] = None,
) -> None:
    """Take a small corpus through every step, in minutes on a CPU.

    Prepares, plans, trains, evaluates, generates, exports and reports. Continues where it was stopped.
    """
    from packtrain.api.data import prepare
    from packtrain.api.measuring import EvaluateOptions, evaluate_and_save
    from packtrain.cli import ledger
    from packtrain.cli.evaluation_view import show_text
    from packtrain.cli.export import export
    from packtrain.cli.generate import generate
    from packtrain.cli.plan import plan
    from packtrain.cli.report import report
    from packtrain.cli.train import train

    start = time.monotonic()
    dataset, run, exported = out / "dataset", out / "run", out / "huggingface"
    settings = [f"data.dataset={dataset}", *(settings or ())]
    words = " ".join(settings)
    _say("1/7  text to a dataset", f"packtrain prepare stdlib --out {dataset}")
    with screen.progress("preparing", "documents") as on_progress:
        prepared = prepare("stdlib", out=dataset, on_progress=on_progress)
    # The tables of lengths, which the command prints too, say nothing to a newcomer.
    ledger.show_counts(prepared.manifest)
    _say("2/7  what training will take", f"packtrain plan demo {words}")
    plan("demo", settings)
    _say("3/7  training", f"packtrain train demo {words} --run {run} --resume")
    train("demo", settings, run=run, resume=True)
    _say("4/7  evaluation", f"packtrain evaluate {run} --all")
    # Without the tables by length and position.
    show_text(evaluate_and_save(run, EvaluateOptions(everything=True), progress=screen.progress))
    for prompt in PROMPTS:
        _say("5/7  generation", f"packtrain generate {run} --prompt '{prompt}' --max-tokens 60 --seed 1")
        generate(run, prompt=[prompt], max_tokens=60, seed=1)
    _say("6/7  export", f"packtrain export {run} --format hf --out {exported} --overwrite")
    export(run, format="hf", out=exported, overwrite=True)
    _say("7/7  report", f"packtrain report {run}")
    report([run])
    _summary(run, dataset, exported, time.monotonic() - start)


def _say(title: str, command: str) -> None:
    screen.heading(title)
    screen.console.print(f"[dim]$ {command}[/dim]", soft_wrap=True)


def _compare_sides(dataset: Path) -> str:
    """How much of the held-out text training has too, in a sentence."""
    from packtrain.data.format.shards import open_dataset
    from packtrain.data.tokens.tokenizer import load_tokenizer
    from packtrain.evaluate.near_copies import count_near_copies, describe_near_copies

    opened = open_dataset(dataset)
    return describe_near_copies(count_near_copies(opened, load_tokenizer(opened.tokenizer_folder)))


def _summary(run: Path, dataset: Path, exported: Path, seconds: float) -> None:
    """Prints how the model compares with the yardsticks, where everything is, and what to type next."""
    from packtrain.runs.layout import RunLayout

    layout = RunLayout(run)
    evaluation: dict[str, Any] = json.loads(layout.evaluation.read_text())
    bits = {"this model": evaluation["model"]["bits_per_byte"]}
    bits |= {yardstick["name"]: yardstick["bits_per_byte"] for yardstick in evaluation["yardsticks"]}
    screen.heading(f"Done in {seconds / 60:.1f} minutes")
    ranked = sorted(bits.items(), key=lambda item: item[1])
    screen.console.print("bits per byte on held-out documents, fewer is better:")
    for name, value in ranked:
        screen.console.print(f"  {name:<18}{value:.3f}", style="bold" if name == "this model" else "")
    screen.console.print(_compare_sides(dataset))
    screen.console.print()
    for name, place in (
        ("dataset", dataset),
        ("run", run),
        ("Hugging Face model", exported),
        ("report", f"{layout.report} (open it in a browser)"),
        ("page to play with it", f"{write_command('serve', run)}, then open http://127.0.0.1:8000/"),
    ):
        screen.console.print(f"{name:<22}{place}", soft_wrap=True, markup=False)
    show_next(
        write_command("generate", run, "--prompt", "class "),
        write_command("inspect", run, "--step", 1),
    )
