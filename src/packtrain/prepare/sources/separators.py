"""Decides what may stand between the documents of a text file, and how many documents each of these would give."""

from packtrain.prepare.sources.records import CHUNK
from packtrain.prepare.sources.slices import SourceFile
from packtrain.storage.files import open_stream, reading

END_OF_TEXT = "<|endoftext|>"
# What often stands between the documents of one file.
_USUAL = (END_OF_TEXT, "\n\n\n", "\n\n", "\f", "</s>", "\n---\n", "\n***\n", "\n===\n", "\n%\n", "\n")


def count_documents(file: SourceFile) -> dict[str, int]:
    """How many documents with more than whitespace each usual separator gives, if it gives more than one.

    Reads the file once, and holds a megabyte of it.
    """
    counts = dict.fromkeys(_USUAL, 0)
    # Of each separator: whether the document that is not at its end yet has more than whitespace, and what may begin another.
    is_open = dict.fromkeys(_USUAL, False)
    rests = dict.fromkeys(_USUAL, b"")
    held = b""
    with reading(file.name), open_stream(file.url) as stream:
        while chunk := stream.read(CHUNK):
            chunk = held + chunk
            # A line end may be cut in two.
            held = b"\r" if chunk.endswith(b"\r") else b""
            chunk = chunk.removesuffix(held).replace(b"\r\n", b"\n")
            for name in _USUAL:
                separator, text = name.encode(), rests[name] + chunk
                # A megabyte of line ends would be a million pieces. All but the first are blank, so where they begin has no effect.
                *ended, last = text.rsplit(separator, 1) if text.isspace() else text.split(separator)
                for piece in ended:
                    counts[name] += bool(is_open[name] or piece.strip())
                    is_open[name] = False
                most = len(separator) - 1
                rests[name] = last[-most:] if most else b""
                is_open[name] = is_open[name] or bool(last[: len(last) - len(rests[name])].strip())
    for name in _USUAL:
        counts[name] += bool(is_open[name] or rests[name].strip())
    return {name: count for name, count in counts.items() if count > 1}


def list_choices(counts: dict[str, int]) -> str:
    """The settings that cut a file, as one types them, with the documents that each gives."""
    shown = ((name.replace("\n", r"\n").replace("\f", r"\f"), count) for name, count in counts.items())
    words = {
        r"\n\n": "at blank lines",
        r"\n": "at each line end",
        r"\f": "at form feeds",
        r"\n\n\n": "at two blank lines",
    }
    return ", ".join(
        f"source.separator='{name}' ({words[name] + ', ' if name in words else ''}{count:,} documents)"
        for name, count in shown
    )
