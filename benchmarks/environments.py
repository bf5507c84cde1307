"""Decides where another tool's libraries lie: each in an environment of its own, made once, and never in ours."""

import os
import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
READING = ["pyarrow==26.0.1", "tokenizers==0.23.3"]
# What each tool needs beside itself to run on a CPU.
REQUIREMENTS = {
    "litgpt": [TORCH, "litgpt==0.5.13"],
    # It imports triton even where there is nothing that could run it.
    "torchtitan": [TORCH, "torchtitan==0.3.0", "triton"],
    "datasets": ["datasets==5.2.0", "transformers==5.23.0", *READING],
    "datatrove": ["datatrove==0.10.1", "orjson==3.13.0", *READING],
    "litdata": [TORCH, "litdata==0.2.76", *READING],
}
# torchvision, which litdata asks for and does without, does not import beside this torch.
UNWANTED = {"litdata": ["torchvision"]}


def default_folder() -> Path:
    """Where environments are kept unless told otherwise: the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "packtrain-benchmarks"


def python_of(tool: str, folder: Path) -> str:
    """Path of the Python of a tool's environment, which is made if it is not there: minutes and gigabytes, from PyPI."""
    home = folder / tool
    python = home / "bin" / "python"
    mark = home / ".complete"
    wanted = "\n".join(REQUIREMENTS[tool])
    if not mark.is_file() or mark.read_text() != wanted:
        print(f"making an environment for {tool} in {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        if TORCH in REQUIREMENTS[tool]:
            # First and alone, so that nothing else decides which build it is.
            subprocess.run([*pip, "install", TORCH], check=True, stdout=sys.stderr)
        subprocess.run([*pip, "install", *REQUIREMENTS[tool]], check=True, stdout=sys.stderr)
        if tool in UNWANTED:
            subprocess.run([*pip, "uninstall", "--yes", *UNWANTED[tool]], check=True, stdout=sys.stderr)
        mark.write_text(wanted)
    return str(python)
