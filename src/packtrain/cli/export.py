"""`packtrain export`: a model, or a dataset, as files that other programs load, checked before they appear."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.export_loading import describe_loading
from packtrain.cli.figures import describe_average
from packtrain.cli.following import show_next
from packtrain.cli.options import AsJson, AverageChoice, Best, Last, Step, is_dataset
from packtrain.errors import ConfigError

if TYPE_CHECKING:
    from packtrain.export.run import Export


Target = Annotated[
    Path, typer.Argument(metavar="RUN|MODEL|DATASET", help="A run, a model's folder or file, or a dataset.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Folder to write; only --push of an export needs none.")
]
FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="Of a model: hf (the default), gguf or llama2c. Of a dataset: nanogpt, llmc, megatron or datatrove.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Weights: float32 (the default), float16 or bfloat16; gguf also q8_0; llama2c float32 or int8.",
    ),
]
ShardSize = Annotated[
    str | None, typer.Option("--shard-size", metavar="SIZE", help="hf: most bytes in a file of weights [5GB].")
]
Version = Annotated[
    int | None, typer.Option("--version", metavar="N", help="llama2c: 0 (run.c, the default), 1, or 2 (int8, runq.c).")
]
GroupSize = Annotated[
    int | None, typer.Option("--group-size", metavar="N", help="llama2c, int8: weights that share a scale [64].")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")]
DatasetFolder = Annotated[
    Path | None,
    typer.Option("--dataset", metavar="FOLDER", help="The run's dataset, if it was moved; the check reads from it."),
]
Push = Annotated[
    str | None,
    typer.Option("--push", metavar="OWNER/NAME", help="Then upload it to the Hugging Face hub, privately."),
]
Public = Annotated[bool, typer.Option("--public", help="With --push: a new repository is public.")]


def export(
    target: Target,
    out: Out = None,
    format: FormatName = None,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    version: Version = None,
    group_size: GroupSize = None,
    overwrite: Overwrite = False,
    dataset: DatasetFolder = None,
    step: Step = None,
    best: Best = False,
    last: Last = False,
    average: AverageChoice = None,
    push: Push = None,
    public: Public = False,
    as_json: AsJson = False,
) -> None:
    """Write a model or dataset for other programs, and check it.

    The export is written, loaded again and compared, and only then moved into place. A model's logits and token ids must be
    the same, and a dataset's ids and document boundaries.
    """
    screen.route_logging()
    options: dict[str, Any] = {"dtype": dtype, "shard_size": shard_size, "version": version, "group_size": group_size}
    options |= {"dataset": dataset, "step": step}
    chosen = {
        **options,
        "best": best or None,
        "last": last or None,
        "average" if average is not False else "no-average": average,
    }
    _check_push(target, out, push, public, {**chosen, "format": format})
    if is_dataset(target):
        for name, value in {**chosen, "push": push}.items():
            if value is not None:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} applies only to a model, and {target} is a dataset; leave it out")
        assert out is not None, "checked above"
        _export_dataset(target, out, format, overwrite, as_json)
        return
    facts: dict[str, Any] = {}
    if out is not None:
        which = {"best": best, "last": last, "average": average}
        exported = _export_model(target, out, format=format or "hf", overwrite=overwrite, **which, **options)
        facts = _facts(exported)
        if not as_json:
            _show(exported)
    if push is not None:
        facts["url"] = _push(out or target, push, public)
    if as_json:
        screen.print_json(facts)
    elif push is not None:
        screen.console.print(f"uploaded to {facts['url']}", markup=False, soft_wrap=True)


def _export_model(target: Path, out: Path, **options: Any) -> "Export":
    """`export_opened` with its progress shown."""
    from packtrain.api.exporting import export_opened

    with screen.progress("exporting", "stages") as on_progress:
        return export_opened(target, out, on_progress=on_progress, **options)


def _check_push(target: Path, out: Path | None, push: str | None, public: bool, chosen: dict[str, Any]) -> None:
    """Refuses, before anything is written, what would fail or have no effect afterwards."""
    if public and push is None:
        raise ConfigError("--public applies only to --push; add --push owner/name, or leave it out")
    if out is None:
        if push is None:
            raise ConfigError("an export needs a folder; write --out with one that does not exist yet")
        if not is_export(target):
            raise ConfigError(f"{target} is not an export made by packtrain; write --out with a folder for one")
        given = next((name for name, value in chosen.items() if value is not None), None)
        if given is not None:
            raise ConfigError(
                f"--{given.replace('_', '-')} applies only to a new export; write --out, or leave it out to upload {target}"
            )
    if push is not None:
        from packtrain.export.push import check_repo

        check_repo(push)


def is_export(folder: Path) -> bool:
    """Whether packtrain wrote a folder as an export."""
    return (folder / "packtrain.json").is_file()


def _push(folder: Path, repo: str, public: bool) -> str:
    from packtrain.api.exporting import push

    screen.note(f"uploading {folder} to {repo}")
    return push(folder, repo, public=public)


def _facts(exported: "Export") -> dict[str, Any]:
    choices, checks = exported.choices, exported.checks
    facts = {"folder": str(exported.folder), "format": exported.format, "dtype": choices.dtype, "step": exported.step}
    facts["average"] = exported.average
    return {**facts, "size_bytes": exported.size_bytes, "checks": asdict(checks)}


def _show(exported: "Export") -> None:
    checks = exported.checks
    step = "" if exported.step is None else f"step {exported.step}{describe_average(exported.average)}, "
    screen.console.print(
        f"{exported.folder}: {step}{exported.choices.dtype}, {exported.size_bytes / 1e6:.1f} MB",
        markup=False,
        soft_wrap=True,
    )
    what = "log-probabilities" if exported.format == "gguf" else "logits"
    greedy = "" if checks.num_greedy is None else f", equal greedy text of {checks.num_greedy} prompts"
    screen.console.print(
        f"read again by {checks.reader}: {what} within {checks.max_logit_difference:.1e} ({checks.tolerance:.0e} allowed) on "
        f"{checks.num_tokens} tokens of the {checks.text}, loss {checks.loss_exported:.4f} (float32 {checks.loss:.4f}), equal token "
        f"ids on {checks.num_strings} strings{greedy}",
        markup=False,
        soft_wrap=True,
    )
    from packtrain.export.llama2c.write import PROGRAMS

    commands = describe_loading(exported.folder, exported.format, exported.choices.dtype, exported.choices.version)
    if exported.format == "llama2c" and exported.choices.version in PROGRAMS:
        program = PROGRAMS[exported.choices.version]
        screen.console.print(f"for the folder of llama2.c, after `make {program}` there:", soft_wrap=True)
    show_next(*commands)


def _export_dataset(folder: Path, out: Path, format: str | None, overwrite: bool, as_json: bool) -> None:
    from packtrain.api.exporting import export_documents

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
