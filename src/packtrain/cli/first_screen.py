"""Decides which verbs there are and what the first screen says of them; imports little, so that it is there at once."""

import shutil
import textwrap

from packtrain.config.shipped import KINDS, shipped

ABOUT = "Raw text in, a trained Llama out, with nothing lost."
# The first line of each verb's own help, so that the first screen imports none of them.
GROUPS = {
    "First steps": {
        "demo": "Take a small corpus through every step, in minutes on a CPU.",
        "config": "Show every value of a preset or recipe, and where it came from.",
    },
    "Data": {
        "prepare": "Turn text into a dataset: clean, deduplicate, split, tokenize.",
        "import": "Make a dataset from another program's token files.",
        "tokenizer": "Train a tokenizer on a recipe's text, or write out a model's.",
        "verify": "Check that a dataset is whole and unchanged.",
        "inspect": "Show a run, a step's rows, or when a document is trained on.",
        "diff": "Compare two datasets or two runs, and explain how they differ.",
    },
    "Training": {
        "plan": "Show the memory, time and cost of a run before it starts.",
        "ladder": "Predict a preset's loss from a few small runs on your data.",
        "train": "Train a model on a dataset, or resume a run.",
        "resume": "Continue a run where it stopped, with its own settings.",
        "runs": "List the runs in a folder and below it.",
        "report": "Write an HTML page about a run, several runs, or a dataset.",
    },
    "Using a model": {
        "evaluate": "Measure loss and bits per byte on held-out text, or in tasks.",
        "generate": "Continue prompts, or talk with the model in the terminal.",
        "serve": "Serve a model by OpenAI's API, with a page to play with it.",
        "export": "Write a model or dataset for other programs, and check it.",
    },
    "Machine": {
        "doctor": "Show what this machine can do, or check a run before it starts.",
        "completion": "Print a script that completes verbs and settings in a shell.",
    },
}
VERBS = {name: about for group in GROUPS.values() for name, about in group.items()}
_DOCS = "README.md and docs/ in the source repository; docs/configuration.md lists every setting"


def first_screen() -> str:
    """Every verb, by group, with the presets and recipes that there are, for a screen of at most 80 columns."""
    width = max(50, min(shutil.get_terminal_size().columns, 80) - 2)
    lines = ["Usage: packtrain VERB [OPTIONS] ..."]
    for text in (ABOUT, "`packtrain VERB --help` lists what a verb takes."):
        lines += ["", *textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")]
    names = {kind.capitalize(): ", ".join(shipped(kind)) for kind in KINDS}
    left = max(map(len, VERBS))
    for title, rows in {**GROUPS, "More": {**names, "Docs": _DOCS}}.items():
        lines += ["", f"{title}:"]
        for name, text in rows.items():
            first = f"  {name:<{left}}  "
            lines += textwrap.wrap(
                text, width, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
            )
    return "\n".join(lines) + "\n"
