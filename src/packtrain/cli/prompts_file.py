"""Decides how prompts are read: from standard input, or from a file with one on each line."""

import json
import sys
from pathlib import Path

from packtrain.errors import UserError


def read_prompt() -> str:
    """Standard input as a prompt, without the final line break that `echo` and editors add."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the prompt on standard input is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines that are not empty, or of a .jsonl file its strings, or what its objects' `prompt` says.

    Raises UserError for a file that cannot be read, has no prompt, or has a line of another form.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file with a prompt on each line") from None
    # Not splitlines, which would also split at characters that belong to a prompt.
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} has no prompt; write one on each line")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_read_line(path, number, line) for number, line in lines]


def _read_line(path: Path, number: int, line: str) -> str:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    prompt = found.get("prompt") if isinstance(found, dict) else found
    if not isinstance(prompt, str):
        raise UserError(f'line {number} of {path} is neither a JSON string nor an object such as {{"prompt": "Once"}}')
    return prompt
