"""Decides how figures are kept while they come: one file that is never half written, which a later run continues."""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.child import OUT_OF_MEMORY
from benchmarks.gpu.table import table
from packtrain.storage.atomic import write_atomically

Figures = dict[str, Any]
_FORMAT = 2


class Results:
    """The figures of OUT/gpu.json, by case: each time it was tried, with the seconds that it took. Written at every change.

    Raises SystemExit if the file is not one of ours, or of another device or torch than `device` describes.
    """

    def __init__(self, out: Path, device: Figures) -> None:
        self._path, self._table = out / "gpu.json", out / "gpu.md"
        self._content = self._read(device)
        self._content["left out"] = []

    @property
    def cases(self) -> dict[str, list[Figures]]:
        """The tries of each case."""
        cases: dict[str, list[Figures]] = self._content["cases"]
        return cases

    @property
    def machine(self) -> Figures:
        """The figures of the case `machine`; empty if it is missing."""
        found = self.cases.get("machine", [{}])[-1]
        return {} if "failed" in found else found

    def add(self, name: str, figures: Figures) -> None:
        """Adds a try, in place of an earlier one that failed for another reason than memory."""
        tries = self.cases.setdefault(name, [])
        if tries and tries[-1].get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY:
            tries.pop()
        tries.append(figures)
        self.keep()

    def leave_out(self, name: str, why: str) -> None:
        """Notes a case that was not begun."""
        self._content["left out"].append({"case": name, "why": why})
        self.keep()

    def keep(self) -> None:
        """Writes both files."""
        write_atomically(self._path, (json.dumps(self._content, indent=2) + "\n").encode())
        write_atomically(self._table, self.table().encode())

    def table(self) -> str:
        """The figures as Markdown."""
        return table(self._content)

    def _read(self, device: Figures) -> Figures:
        if not self._path.exists():
            return {"format": _FORMAT, "device": device, "cases": {}}
        try:
            content: Figures = json.loads(self._path.read_text())
            is_ours = content["format"] == _FORMAT and isinstance(content["cases"], dict)
            before = content["device"]
        except (ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise SystemExit(f"{self._path} is not a file of this version of the benchmark; choose another --out")
        for what in ("device", "torch", "cuda"):
            if before.get(what) != device[what]:
                raise SystemExit(
                    f"{self._path} holds figures of another {what} ({before.get(what)}); choose another --out"
                )
        return content
