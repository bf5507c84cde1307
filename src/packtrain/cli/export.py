"""`packtrain export`: a run's model as files that other programs load, checked before they appear."""

from pathlib import Path
from typing import Annotated

import typer

from packtrain.cli.options import AsJson, Best, Run, Step, which_checkpoint


def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    format: Annotated[str, typer.Option("--format", help="hf: a Hugging Face folder.")] = "hf",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights: float32, bfloat16 or float16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="The run's prepared dataset, if it was moved; for the comparison.")
    ] = None,
    step: Step = None,
    best: Best = False,
    as_json: AsJson = False,
) -> None:
    """Write, reload, compare logits and token ids, then publish."""
    from dataclasses import asdict

    from rich.markup import escape

    from packtrain.cli import screen
    from packtrain.export.run import export_run
    from packtrain.runs.checkpoint import open_run

    screen.route_logging()
    opened = open_run(run, step=step, which=which_checkpoint(step, best))
    with screen.progress("exporting", "stages") as on_progress:
        exported = export_run(
            opened, out, format=format, dtype=dtype, overwrite=overwrite, dataset=dataset, on_progress=on_progress
        )
    checks = exported.checks
    if as_json:
        facts = {"folder": str(exported.folder), "format": format, "dtype": dtype, "step": opened.step}
        screen.print_json({**facts, "size_bytes": exported.size_bytes, "checks": asdict(checks)})
        return
    screen.console.print(
        f"{escape(str(exported.folder))}: step {opened.step}, {dtype}, {exported.size_bytes / 1e6:.1f} MB",
        soft_wrap=True,
    )
    screen.console.print(
        f"reloaded with transformers: logits within {checks.max_logit_difference:.1e} ({checks.tolerance:.0e} allowed) on "
        f"{checks.num_tokens} tokens of the {checks.text}, loss {checks.loss_exported:.4f}, equal token ids on "
        f"{checks.num_strings} strings",
        soft_wrap=True,
    )
