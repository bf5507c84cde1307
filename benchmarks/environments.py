"""Decides where another tool's libraries are installed: in its own environment, made once, never in ours."""

import os
import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
READING = ["pyarrow==26.0.1", "tokenizers==0.23.3"]
# Each tool, and what it needs to run on a CPU.
REQUIREMENTS = {
    "litgpt": [TORCH, "litgpt==0.5.13"],
    # It imports triton even if nothing can run it.
    "torchtitan": [TORCH, "torchtitan==0.3.0", "triton"],
    "datasets": ["datasets==5.2.0", "transformers==5.23.0", *READING],
    "datatrove": ["datatrove==0.10.1", "orjson==3.13.0", *READING],
    "litdata": [TORCH, "litdata==0.2.76", *READING],
}
# litdata requires torchvision but works without it; with this torch, torchvision cannot be imported.
UNWANTED = {"litdata": ["torchvision"]}


def default_folder() -> Path:
    """The default folder for environments, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "packtrain-benchmarks"


def python_of(tool: str, folder: Path) -> str:
    """Path of the Python in a tool's environment. Creates it if needed, which takes minutes and gigabytes from PyPI."""
    home = folder / tool
    python = home / "bin" / "python"
    mark = home / ".complete"
    wanted = "\n".join(REQUIREMENTS[tool])
    if not mark.is_file() or mark.read_text() != wanted:
        print(f"making an environment for {tool} in {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        if TORCH in REQUIREMENTS[tool]:
            # First and alone, so that no other requirement decides which build is installed.
            subprocess.run([*pip, "install", TORCH], check=True, stdout=sys.stderr)
        subprocess.run([*pip, "install", *REQUIREMENTS[tool]], check=True, stdout=sys.stderr)
        if tool in UNWANTED:
            subprocess.run([*pip, "uninstall", "--yes", *UNWANTED[tool]], check=True, stdout=sys.stderr)
        mark.write_text(wanted)
    return str(python)
