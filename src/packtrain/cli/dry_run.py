"""Decides how `prepare --dry-run` is shown: what a sample says about the whole source, and what it cannot say."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packtrain.cli import screen
from packtrain.cli.following import show_next, write_command
from packtrain.config.recipe import Recipe


def dry_run(recipe: Recipe, words: Sequence[str], out: str | None, as_json: bool) -> None:
    """Estimates what `prepare` would write with these `words`. Of `out` it reads only how much of the disk is free."""
    from packtrain.prepare.estimate import estimate

    with screen.progress("trying a sample", "documents") as on_progress:
        estimated = estimate(recipe, on_progress)
    estimated["disk"]["free"] = None if out is None or "://" in out else _free(Path(out).expanduser())
    if as_json:
        screen.print_json(estimated)
        return
    _show(estimated)
    _explain(estimated)
    name = Path(words[0]).stem or "mine"
    show_next(write_command("prepare", *words, "--out", f"data/{name}" if out is None else out))


def _show(estimated: dict[str, Any]) -> None:
    from packtrain.prepare.steps.disk_budget import readable

    source, sample, disk, spent = (estimated[key] for key in ("source", "sample", "disk", "time"))
    table = screen.table(
        "", "documents", "bytes of text", "tokens", title="Estimate" if not sample["is_whole"] else "Result"
    )
    for name in ("train", "validation"):
        table.add_row(name, *(f"{estimated[key][name]:,}" for key in ("documents", "utf8_bytes", "tokens")))
    for reason, count in estimated["documents"]["dropped"].items():
        table.add_row(reason.replace("_", " "), f"{count:,}")
    screen.console.print(table)
    error = estimated["tokens"]["relative_error"]
    figures = screen.table("")
    figures.add_column("")
    figures.add_row("source", f"{source['rows']:,} rows, {readable(source['bytes'])} as stored")
    figures.add_row("sample", _sample(sample, source))
    figures.add_row("tokens", "exact" if sample["is_whole"] else "unknown" if error is None else f"± {error:.1%} (95%)")
    figures.add_row("bytes per token", f"{estimated['bytes_per_token']:.2f}")
    figures.add_row("tokens per document", f"{estimated['tokens_per_document']:,.0f}")
    longer = ", ".join(f"{estimated['longer_than'][size]:.1%} than {int(size):,}" for size in ("1024", "4096"))
    figures.add_row("longer documents", longer)
    figures.add_row("copies", _copies(estimated["duplicates"]))
    figures.add_row(
        "disk", f"{readable(disk['final'])}, and at most {readable(disk['at_most_while_working'])} while working"
    )
    if disk["free"] is not None:
        figures.add_row("free there", readable(disk["free"]))
    figures.add_row("time", _time(spent))
    screen.console.print(figures)


def _explain(estimated: dict[str, Any]) -> None:
    from packtrain.data.format.account import describe_loss

    loss, disk = describe_loss(estimated), estimated["disk"]
    if loss is not None:
        screen.warn(loss if estimated["sample"]["is_whole"] else f"by the sample, {loss}")
    if disk["free"] is not None and disk["at_most_while_working"] > disk["free"]:
        screen.warn("the disk of --out does not have enough free space; choose another, or free some")
    if estimated["sample"]["is_whole"]:
        screen.note("The source is small, so all of it was read: the time is measured, and everything else is counted.")
        return
    screen.note(
        "Rows are counted; everything else is measured on the sample and scaled up. Copies are found only within the sample. "
        "If the source has more of them, that much less is kept. The upper bound holds with 95% confidence if copies are "
        "close together or spread evenly."
    )
    if estimated["tokenizer"]["trained_on_sample"]:
        screen.note(
            "The tokenizer was trained on the sample; a tokenizer trained on the whole source gives slightly different counts."
        )


def _sample(sample: dict[str, Any], source: dict[str, Any]) -> str:
    from packtrain.prepare.steps.disk_budget import readable

    if sample["is_whole"]:
        return "all of it"
    share = sample["rows"] / source["rows"]
    return f"{sample['rows']:,} rows ({share:.2g} of all) in {sample['runs']} places, {readable(sample['bytes'])}"


def _copies(found: dict[str, Any]) -> str:
    if found["at_least"] == found["at_most"]:
        return f"{found['seen']:.2%} of documents"
    most = (
        "; the sample is too small for an upper bound"
        if found["at_most"] is None
        else f", at most {found['at_most']:.1%}"
    )
    return f"{found['seen']:.2%} seen, at least {found['at_least']:.2%}{most}"


def _time(spent: dict[str, Any]) -> str:
    parts = {"plan": "plan_s", "scan": "scan_s", "train the tokenizer": "train_tokenizer_s", "tokenize": "tokenize_s"}
    shares = ", ".join(f"{name} {_duration(spent[key])}" for name, key in parts.items() if spent[key] > 0)
    return f"{_duration(spent['hours'] * 3600)} with {spent['workers']} workers, at the speed of the sample ({shares})"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _free(out: Path) -> int:
    existing = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
