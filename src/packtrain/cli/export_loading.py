"""Decides which commands an export ends by showing: those that load it in the programs it was made for, as they are typed."""

import re
import shutil
import sys
from pathlib import Path

from packtrain.cli.following import quote, write_command, write_python

_PROMPT = "The"


def describe_loading(folder: Path, format: str, dtype: str, version: int) -> list[str]:
    """The commands, the likeliest first; each works in the folder that the export was made from, but for llama2.c's own."""
    if format == "gguf":
        commands = _load_gguf(folder, dtype)
    elif format == "llama2c":
        commands = [_load_llama2c(folder, version)]
    else:
        commands = [_load_transformers(folder)]
    return [*commands, _upload(folder)]


def repo_name(folder: Path) -> str:
    """The folder's name, as far as a repository of the hub can have it."""
    name = re.sub(r"[^A-Za-z0-9._]+|\.{2,}", "-", folder.resolve().name)
    return re.sub(r"-{2,}", "-", name).strip("-.").removesuffix(".git")[:96] or "model"


def _load_transformers(folder: Path) -> str:
    return write_python(
        "from transformers import pipeline; "
        f"print(pipeline('text-generation', {str(folder)!r})({_PROMPT!r}, max_new_tokens=40)[0]['generated_text'])"
    )


def _load_gguf(folder: Path, dtype: str) -> list[str]:
    from packtrain.export.gguf.write import MODELFILE, file_name

    file, name = folder / file_name(dtype), repo_name(folder).lower()
    return [
        f"llama-server -m {quote(str(file))}",
        f"ollama create {name} -f {quote(str(folder / MODELFILE))} && ollama run {name} {_PROMPT}",
    ]


def _load_llama2c(folder: Path, version: int) -> str:
    from packtrain.export.llama2c.write import MODEL, PROGRAMS, VOCABULARY

    if version not in PROGRAMS:
        return write_command("generate", folder / MODEL, "--prompt", _PROMPT)
    # An absolute path: llama2.c's programs are run in their own folder.
    model, vocabulary = (quote(str((folder / name).resolve())) for name in (MODEL, VOCABULARY))
    return f"./{PROGRAMS[version]} {model} -z {vocabulary} -n 200 -i {_PROMPT}"


def _upload(folder: Path) -> str:
    """A repository without an owner is the user's own."""
    beside = Path(sys.executable).parent / "hf"
    program = "hf" if shutil.which("hf") or not beside.exists() else quote(str(beside))
    return f"{program} upload {repo_name(folder)} {quote(str(folder))} --private"
