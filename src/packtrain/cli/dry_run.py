"""Decides how `prepare --dry-run` is shown: what a sample says of the whole source, and what it leaves open."""

import shutil
from pathlib import Path
from typing import Any

from packtrain.cli import screen
from packtrain.config.recipe import Recipe


def dry_run(recipe: Recipe, out: str | None, as_json: bool) -> None:
    """Estimate what `prepare` would give; of `out` nothing but the free room of its disk is looked at."""
    from packtrain.prepare.estimate import estimate

    with screen.progress("trying a sample", "documents") as on_progress:
        told = estimate(recipe, on_progress)
    told["disk"]["free"] = None if out is None or "://" in out else _free(Path(out).expanduser())
    if as_json:
        screen.print_json(told)
        return
    _show(told)
    _explain(told)
    if out is not None:
        screen.console.print(f"\nnext: the same command without --dry-run, which writes {out}", markup=False)


def _show(told: dict[str, Any]) -> None:
    from packtrain.prepare.steps.disk_budget import readable

    source, sample, disk, spent = (told[key] for key in ("source", "sample", "disk", "time"))
    table = screen.table(
        "", "documents", "bytes of text", "tokens", title="Estimate" if not sample["is_whole"] else "Result"
    )
    for name in ("train", "validation"):
        table.add_row(name, *(f"{told[key][name]:,}" for key in ("documents", "utf8_bytes", "tokens")))
    for reason, count in told["documents"]["dropped"].items():
        table.add_row(reason.replace("_", " "), f"{count:,}")
    screen.console.print(table)
    error = told["tokens"]["relative_error"]
    figures = screen.table("")
    figures.add_column("")
    figures.add_row("source", f"{source['rows']:,} rows, {readable(source['bytes'])} of text as it lies there")
    figures.add_row("sample", _sample(sample, source))
    figures.add_row(
        "tokens", "exact" if sample["is_whole"] else "unknown" if error is None else f"± {error:.1%} (95 %)"
    )
    figures.add_row("bytes a token", f"{told['bytes_per_token']:.2f}")
    figures.add_row("tokens a document", f"{told['tokens_per_document']:,.0f}")
    longer = ", ".join(f"{told['longer_than'][size]:.1%} than {int(size):,}" for size in ("1024", "4096"))
    figures.add_row("longer documents", longer)
    figures.add_row("copies", _copies(told["duplicates"]))
    figures.add_row(
        "disk", f"{readable(disk['final'])}, and at most {readable(disk['at_most_while_working'])} while working"
    )
    if disk["free"] is not None:
        figures.add_row("free there", readable(disk["free"]))
    figures.add_row("time", _time(spent))
    screen.console.print(figures)


def _explain(told: dict[str, Any]) -> None:
    disk = told["disk"]
    if disk["free"] is not None and disk["at_most_while_working"] > disk["free"]:
        screen.warn("the disk of --out has not enough room")
    if told["sample"]["is_whole"]:
        screen.note("The source is so small that it was read whole; the hours are measured, and all else is counted.")
        return
    screen.note(
        "Rows are counted; all else is measured on the sample and multiplied. Copies are sought within the sample only, and "
        "what is kept is shown as if there were no more in the source: each percent more is a percent less. The upper bound "
        "holds at 95 % if copies are close together or spread evenly."
    )
    if told["tokenizer"]["trained_on_sample"]:
        screen.note(
            "The tokenizer was trained on the sample; the one of the whole source will give a little other numbers of tokens."
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
    return f"{_duration(spent['hours'] * 3600)} with {spent['workers']} workers, as measured just now ({shares})"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _free(out: Path) -> int:
    there = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free
