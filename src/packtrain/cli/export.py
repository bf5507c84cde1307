"""`packtrain export`: a run's model, or a dataset, as files that other programs load, checked before they appear."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from packtrain.cli import screen
from packtrain.cli.following import show_next, write_python
from packtrain.cli.options import AsJson, Best, Step, is_dataset
from packtrain.errors import ConfigError


def export(
    target: Annotated[
        Path,
        typer.Argument(metavar="RUN|DATASET", help="A folder that `packtrain train` or `packtrain prepare` wrote."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="For a run: hf, a Hugging Face folder (the default). For a dataset: nanogpt, llmc, megatron or datatrove.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="DTYPE", help="Type of the weights: float32 (the default), bfloat16 or float16."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    dataset: Annotated[
        Path | None,
        typer.Option(
            "--dataset", metavar="FOLDER", help="The run's dataset, if it was moved; the check reads from it."
        ),
    ] = None,
    step: Step = None,
    best: Best = False,
    as_json: AsJson = False,
) -> None:
    """Write a model or dataset for other programs, and check it.

    The export is written, loaded again and compared, and only then moved into place. A model's logits and token ids must be
    the same, and a dataset's ids and document boundaries.
    """
    screen.route_logging()
    if is_dataset(target):
        for name, given in (("dtype", dtype), ("dataset", dataset), ("step", step), ("best", best or None)):
            if given is not None:
                raise ConfigError(f"--{name} applies only to a run, and {target} is a dataset; leave it out")
        _export_dataset(target, out, format, overwrite, as_json)
    else:
        _export_run(target, out, format or "hf", dtype or "float32", overwrite, dataset, step, best, as_json)


def _export_run(
    run: Path,
    out: Path,
    format: str,
    dtype: str,
    overwrite: bool,
    dataset: Path | None,
    step: int | None,
    best: bool,
    as_json: bool,
) -> None:
    from packtrain.api.models import export_model

    with screen.progress("exporting", "stages") as on_progress:
        exported = export_model(
            run,
            out,
            format=format,
            dtype=dtype,
            overwrite=overwrite,
            dataset=dataset,
            step=step,
            best=best,
            on_progress=on_progress,
        )
    checks = exported.checks
    if as_json:
        facts = {"folder": str(exported.folder), "format": format, "dtype": dtype, "step": exported.step}
        screen.print_json({**facts, "size_bytes": exported.size_bytes, "checks": asdict(checks)})
        return
    screen.console.print(
        f"{screen.escape(str(exported.folder))}: step {exported.step}, {dtype}, {exported.size_bytes / 1e6:.1f} MB",
        soft_wrap=True,
    )
    screen.console.print(
        f"reloaded with transformers: logits within {checks.max_logit_difference:.1e} ({checks.tolerance:.0e} allowed) on "
        f"{checks.num_tokens} tokens of the {checks.text}, loss {checks.loss_exported:.4f}, equal token ids on "
        f"{checks.num_strings} strings",
        soft_wrap=True,
    )
    code = (
        "from transformers import pipeline; "
        f"print(pipeline('text-generation', {str(exported.folder)!r})('The', max_new_tokens=40)[0]['generated_text'])"
    )
    show_next(write_python(code))


def _export_dataset(folder: Path, out: Path, format: str | None, overwrite: bool, as_json: bool) -> None:
    from packtrain.api.models import export_documents

    exported = export_documents(folder, out, format=format, overwrite=overwrite)
    if as_json:
        screen.print_json({**asdict(exported), "format": format})
        return
    screen.console.print(
        f"{out}: {exported.documents:,} documents, {exported.tokens:,} ids, {exported.size_bytes / 1e6:.1f} MB; read back and "
        "compared: equal",
        markup=False,
        soft_wrap=True,
    )
    if exported.eot is not None:
        place = {"end": "at its end", "begin": "at its beginning", "both": "at its beginning and at its end"}
        screen.console.print(f"each document has the id {exported.eot} {place[exported.eot_position]}", markup=False)
