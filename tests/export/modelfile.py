"""Decides whether a text is a Modelfile as Ollama documents it: https://docs.ollama.com/modelfile, read more strictly than Ollama does.

A value is the rest of its line, or stands in "quotes", or in triple quotes, which alone may span lines. A comment is a line of its own.
"""

from typing import NamedTuple

_INSTRUCTIONS = ("from", "parameter", "template", "system", "adapter", "license", "message", "requires")
_PARAMETERS = {
    **dict.fromkeys(("num_ctx", "repeat_last_n", "seed", "num_predict", "top_k"), int),
    **dict.fromkeys(("repeat_penalty", "temperature", "top_p", "min_p"), float),
    "stop": str,
}
_ROLES = ("system", "user", "assistant")
_TRIPLE = '"""'


class Instruction(NamedTuple):
    name: str
    """In lower case; of a parameter or a message, its own name follows after a space."""
    value: str


def parse(text: str) -> list[Instruction]:
    """The instructions in order. Raises ValueError with the line that is none."""
    lines, found = iter(text.splitlines()), []
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(" ")
        name = name.lower()
        if name not in _INSTRUCTIONS:
            raise ValueError(f"no instruction: {line}")
        if name in ("parameter", "message"):
            own, _, rest = rest.strip().partition(" ")
            if own not in (_PARAMETERS if name == "parameter" else _ROLES):
                raise ValueError(f"no {name}: {line}")
            name = f"{name} {own}"
        value = _read_value(rest.strip(), lines, line)
        if name.startswith("parameter"):
            _PARAMETERS[name.split()[1]](value)
        found.append(Instruction(name, value))
    if [each.name for each in found].count("from") != 1:
        raise ValueError("there is not one FROM")
    return found


def _read_value(rest: str, lines, line: str) -> str:
    if rest.startswith(_TRIPLE):
        value = rest.removeprefix(_TRIPLE)
        while _TRIPLE not in value:
            following = next(lines, None)
            if following is None:
                raise ValueError(f"never closed: {line}")
            value += "\n" + following
        value, after = value.split(_TRIPLE, 1)
    elif rest.startswith('"'):
        value, closing, after = rest[1:].partition('"')
        if not closing:
            raise ValueError(f"never closed: {line}")
    else:
        value, after = rest, ""
    if after.strip() or not value:
        raise ValueError(f"no value, or more than one: {line}")
    return value
