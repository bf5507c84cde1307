"""Decides what `inspect` says of a run: what it is, how far it is, what is kept of it, what happened, and what to do next."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from packtrain.runs.layout import HASHES, RunLayout
from packtrain.runs.metrics import is_count
from packtrain.runs.retention import find_best_step, read_val_loss
from packtrain.runs.status import MEANING, State, read_object, read_status, read_tail, read_tree, setting

# Of events; a run that needs more than this has other troubles.
_MOST_BYTES = 1 << 24
# Each of these says that all went as planned.
_USUAL = ("started", "saved", "finished")


def describe_folder(folder: Path) -> dict[str, Any]:
    """What the files of a run say, in numbers and words; None for what they do not say, and `problems` for what is wrong.

    Never fails for a file's content. Sizes are in bytes, times in seconds since 1970.
    """
    layout, status = RunLayout(folder), read_status(folder)
    # What is wrong with these files is among the problems of the status already.
    problems: list[str] = []
    tree, manifest = read_tree(layout, problems), read_object(layout.manifest, problems)
    events = read_tail(layout.events, problems, _MOST_BYTES)
    checkpoints = _list_checkpoints(layout, problems)
    started = [event for event in events if event.get("event") in ("started", "resumed")]
    last = started[-1] if started else {}
    return {
        **asdict(status),
        "folder": str(folder),
        "meaning": MEANING[status.state],
        "created": manifest.get("created"),
        "parameters": manifest.get("parameters"),
        "num_layers": setting(tree, "model.num_hidden_layers"),
        "hidden_size": setting(tree, "model.hidden_size"),
        "datasets": _list_datasets(manifest, tree),
        "global_batch_tokens": setting(tree, "train.global_batch_tokens"),
        "seq_len": setting(tree, "data.seq_len"),
        "precision": setting(tree, "train.precision"),
        "device": _name_device(last, manifest),
        "world_size": last.get("world_size"),
        "versions": last.get("versions") or manifest.get("versions"),
        "git_commit": manifest.get("git_commit"),
        "checkpoints": checkpoints,
        "changes": _list_changes(started),
        "events": [event for event in events if event.get("event") not in _USUAL],
        "problems": list(dict.fromkeys([*status.problems, *problems])),
        "next": suggest(folder, status.state, has_checkpoint=any(each["is_whole"] for each in checkpoints)),
    }


def suggest(folder: Path, state: State, *, has_checkpoint: bool) -> list[list[str]]:
    """The verbs that make sense for a run in this state, with their arguments."""
    run = str(folder)
    if state in ("starting", "training"):
        return [["report", run]]
    if state == "finished" and has_checkpoint:
        return [["generate", run, "--prompt", "The "], ["evaluate", run], ["report", run]]
    if state == "unknown" and not has_checkpoint:
        return []
    return [["resume", run], ["report", run]]


def _list_checkpoints(layout: RunLayout, problems: list[str]) -> list[dict[str, Any]]:
    """The checkpoints that are there, the oldest first. Their files are not read, so only their names tell that one is whole."""
    try:
        steps = layout.saved_steps()
    except OSError as error:
        problems.append(f"checkpoints cannot be read ({error.strerror})")
        return []
    best = find_best_step(layout)
    found = []
    for step in steps:
        folder = layout.checkpoint(step)
        found.append(
            {
                "step": step,
                "size_bytes": _measure(folder),
                "val_loss": read_val_loss(folder),
                "is_best": step == best,
                "is_whole": (folder / HASHES).is_file(),
            }
        )
        if not found[-1]["is_whole"]:
            problems.append(f"the checkpoint of step {step:,} is not whole; it is passed over")
    return found


def _measure(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            # Removed just now, to make room for a newer one.
            continue
    return total


def _list_datasets(manifest: dict[str, Any], tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Folder, hash and training tokens of each dataset; of a run without a manifest, what config.toml names."""
    dataset = manifest.get("dataset")
    described = dataset.get("sources", [dataset]) if isinstance(dataset, dict) else []
    found = []
    for each in described if isinstance(described, list) else []:
        if isinstance(each, dict):
            tokens = setting(each, "ledger.tokens.train")
            count = tokens if is_count(tokens) else None
            found.append({"folder": each.get("folder"), "hash": each.get("hash"), "tokens": count})
    named = setting(tree, "data.dataset")
    return found or ([{"folder": str(named), "hash": None, "tokens": None}] if named else [])


def _name_device(last: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    found = setting(last, "hardware.device") or setting(manifest, "hardware.device")
    return found if isinstance(found, str) else None


def _list_changes(started: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each setting that was changed when the run was resumed: the step, the key, and the value before and after."""
    changes = []
    for event in started:
        changed = event.get("changed")
        for key, values in changed.items() if isinstance(changed, dict) else ():
            if isinstance(values, list) and len(values) == 2:
                changes.append({"step": event.get("step"), "key": key, "before": values[0], "after": values[1]})
    return changes
