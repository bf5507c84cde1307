"""Decides what the model card of an export says: only values that the run recorded or the export measured."""

import html
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import packtrain
from packtrain.config.load import flatten
from packtrain.data.tokens.visible import printable
from packtrain.export.format import Checks, Subject
from packtrain.pretrained.trained_on import find_training_datasets
from packtrain.runs.checkpoint import OpenRun
from packtrain.runs.manifest import list_datasets
from packtrain.runs.metrics import read_metrics
from packtrain.storage.json_file import parse_json
from packtrain.storage.regular import read_regular


def write(subject: Subject, checks: Checks, folder: Path, use: str, library: str | None = "transformers") -> None:
    """Writes README.md, a model card as Hugging Face knows it. `use` says in Markdown how the files are loaded."""
    (folder / "README.md").write_text(_model_card(subject, checks, use, library), encoding="utf-8")


def _model_card(subject: Subject, checks: Checks, use: str, library: str | None) -> str:
    """The card as Markdown, without tables that would be empty."""
    run = subject.run
    sections = [
        _front_matter(subject, library),
        f"# {_inert(subject.opened.name)}",
        _introduce(subject),
        f"## Use\n\n{use}",
        _table("Model", _model_rows(subject)),
        *([] if run is None else _run_sections(run)),
        _table("Checks of this export", _check_rows(subject, checks), _checked(checks)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(subject: Subject, library: str | None) -> str:
    """What the hub reads of a card; datasets of the hub are linked by their names."""
    repos = sorted({part.repo for part in find_training_datasets(subject.opened) if part.repo is not None})
    listed = "".join(f"- {json.dumps(repo)}\n" for repo in repos)
    lines = [
        f"library_name: {library}\n" if library is not None else "",
        f"datasets:\n{listed}" if repos else "",
    ]
    return _FRONT_MATTER.format(lines="".join(lines))


def _introduce(subject: Subject) -> str:
    architecture = "Qwen3 architecture (QK-norm)" if subject.config.qk_norm else "Llama architecture"
    begin = f"A base language model of {subject.num_parameters:,} parameters, {architecture}"
    if subject.run is None:
        return f"{begin}, converted by packtrain. Its weights are in {subject.choices.dtype}."
    average = subject.run.average
    these = "its weights" if average is None else f"the averages of its weights over steps (train.average={average})"
    return (
        f"{begin}, pretrained from scratch with packtrain. These are {these} after step {subject.run.step:,}, in "
        f"{subject.choices.dtype}. It continues text; it has not been tuned to follow instructions."
    )


def _run_sections(run: OpenRun) -> list[str]:
    """What only a run of packtrain knows: how it was trained, on what, and how well it predicts."""
    return [
        _table("Validation", _validation_rows(run)),
        _yardsticks(run),
        _table("Data", _data_rows(run)),
        *_ledgers(run),
        _table("Training", _training_rows(run)),
        _table("Configuration", _settings(run), as_code=True),
    ]


def _model_rows(subject: Subject) -> list[tuple[str, Any]]:
    model, conditions = subject.config, subject.conditions
    return [
        ("parameters", subject.num_parameters),
        ("hidden size", model.hidden_size),
        ("layers", model.num_hidden_layers),
        ("query heads", model.num_attention_heads),
        ("key-value heads", model.kv_heads),
        ("head dim", model.head_size),
        ("intermediate size", model.intermediate_size),
        ("vocabulary", model.vocab_rows),
        ("context length, tokens", conditions.context_length),
        ("tied embeddings", model.tie_word_embeddings),
        ("rotary base", model.rope_theta),
        ("rotary scaling", model.rope_scaling.rope_type if model.rope_scaling else None),
    ]


def _settings(run: OpenRun) -> Iterator[tuple[str, Any]]:
    for key, value in flatten(run.config):
        # The model has its own table, and the dataset's folder means nothing on another machine.
        if not key.startswith("model.") and key != "data.dataset":
            yield key, str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _validation_rows(run: OpenRun) -> list[tuple[str, Any]]:
    found: dict[str, Any] = {}
    for line in read_metrics(run.layout.metrics):
        if "val_loss" in line and line["step"] == run.step and not run.leaves_average:
            found = {"loss": line["val_loss"], "perplexity": line.get("val_ppl"), "bits_per_byte": line.get("val_bpb")}
    evaluated = _evaluation(run).get("model")
    if isinstance(evaluated, dict):
        found |= evaluated
    return [
        ("loss, nats per token", found.get("loss")),
        ("perplexity", found.get("perplexity")),
        ("bits per byte", found.get("bits_per_byte")),
    ]


def _yardsticks(run: OpenRun) -> str:
    found = _evaluation(run).get("yardsticks")
    listed = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    rows = [(str(row.get("name")), row["bits_per_byte"]) for row in listed if "bits_per_byte" in row]
    return _table("Yardsticks, bits per byte on the same documents", rows)


def _evaluation(run: OpenRun) -> dict[str, Any]:
    """What `packtrain evaluate` wrote, if it evaluated the exported weights."""
    try:
        found = parse_json(read_regular(run.layout.evaluation))
    except (OSError, ValueError):
        return {}
    exported = (run.step, run.average)
    return found if isinstance(found, dict) and (found.get("step"), found.get("average")) == exported else {}


def _data_rows(run: OpenRun) -> list[tuple[str, Any]]:
    # No path: it says nothing about the data, and is not meant to be published.
    dataset = run.manifest["dataset"]
    return [
        *(row for part in list_datasets(run.manifest) for row in _source_rows(part)),
        ("BOS token before each document", dataset["tokenizer"]["adds_bos"]),
        ("EOS token after each document", dataset["tokenizer"]["adds_eos"]),
        ("dataset hash", dataset["hash"]),
        ("tokenizer hash", dataset["tokenizer"]["hash"]),
    ]


def _source_rows(part: dict[str, Any]) -> list[tuple[str, Any]]:
    source = part["recipe"].get("source", {})
    keys = ["kind", "repo", "config", "split", "revision"] if source.get("kind") == "hf" else ["kind"]
    if "name" not in part:
        return [(f"source {key}", source.get(key)) for key in keys]
    rows = [(f"weight of {part['name']}", part["weight"]), (f"max epochs of {part['name']}", part["max_epochs"])]
    return rows + [(f"source of {part['name']}, {key}", source.get(key)) for key in keys]


def _ledgers(run: OpenRun) -> list[str]:
    """A table for each dataset of the run."""
    return [
        _table(
            f"Token ledger of {part['name']}" if "name" in part else "Token ledger", _leaves(part.get("ledger") or {})
        )
        for part in list_datasets(run.manifest)
    ]


def _training_rows(run: OpenRun) -> list[tuple[str, Any]]:
    lines = [line for line in read_metrics(run.layout.metrics) if "loss" in line and line["step"] <= run.step]
    last = lines[-1] if lines else {}
    hardware, versions = run.manifest.get("hardware", {}), run.manifest.get("versions", {})
    return [
        ("steps", run.step),
        ("tokens", last.get("tokens")),
        (f"training loss, nats per token, at step {last.get('step')}", last.get("loss")),
        ("device", hardware.get("device")),
        ("processes", hardware.get("world_size")),
        *((f"{name} version", versions.get(name)) for name in ("packtrain", "torch", "python")),
        ("git commit", run.manifest.get("git_commit")),
    ]


def _check_rows(subject: Subject, checks: Checks) -> list[tuple[str, Any]]:
    kind = "log-probabilities" if checks.reader.startswith("llama.cpp") else "logits"
    return [
        ("read back by", checks.reader),
        (f"largest difference between {kind}", f"{checks.max_logit_difference:.1e}"),
        ("largest difference allowed", f"{checks.tolerance:.0e}"),
        ("tokens compared", checks.num_tokens),
        ("tokens taken from", checks.text),
        ("loss on them with the weights in float32", checks.loss),
        (f"loss on them with the {subject.choices.dtype} weights", checks.loss_exported),
        ("strings that both tokenizers encode and decode alike", checks.num_strings),
        ("prompts with the same greedy text", checks.num_greedy),
        ("exported by packtrain", packtrain.__version__),
    ]


def _checked(checks: Checks) -> str:
    lead = (
        f"Before this folder was published, {checks.reader} read it, and what it computed was compared with the model in "
        "packtrain, whose weights were first rounded to the exported type."
    )
    return " ".join([lead, *map(_inert, checks.remarks)])


def tokenizer_note(subject: Subject) -> str:
    """What transformers does with BOS and EOS, as Markdown."""
    tokenizer = subject.conditions.tokenizer
    notes = []
    if subject.conditions.add_bos:
        notes.append(f"The tokenizer puts {_code(tokenizer.bos_token)} before every text, as in training.")
    if tokenizer.eos_token is not None:
        notes.append(
            f"During training, a literal {_code(tokenizer.eos_token)} in a text was ordinary text. transformers reads it as the "
            "control token. To encode it as in training, pass `split_special_tokens=True` to the tokenizer."
        )
    return " ".join(notes)


def _table(title: str, rows: Iterable[tuple[str, Any]], lead: str = "", *, as_code: bool = False) -> str:
    write = _code if as_code else _inert
    known = [(name, _shown(value)) for name, value in rows if value is not None and value not in ((), {}, [])]
    if not known:
        return ""
    body = "\n".join(f"| {write(name)} | {value} |" for name, value in known)
    return f"## {_inert(title)}\n\n{lead + chr(10) * 2 if lead else ''}| | |\n| --- | --- |\n{body}"


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{label}, ")
        else:
            yield label, value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "not finite"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(part) for part in value)
    return _inert(str(value))


def _inert(text: str) -> str:
    """Text on one line that Markdown shows as it is: no name of a folder or file becomes markup, HTML or a cell of a table."""
    line = html.escape(printable(" ".join(text.split())), quote=False)
    return _MARKDOWN.sub(r"\\\g<0>", line)


def _code(text: str | None) -> str:
    """Text as code, whatever it has in it."""
    line = printable(str(text)).replace("\n", "\\n").replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence, gap = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{gap}{line}{gap}{fence}"


# An underscore within a word, as in a version or a setting, marks nothing.
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])")


_FRONT_MATTER = """---
{lines}pipeline_tag: text-generation
tags:
- packtrain
---"""
