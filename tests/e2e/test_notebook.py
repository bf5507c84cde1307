"""Decides whether the notebook is true: its cells run in order, on a small source and with a few steps."""

import ast
import contextlib
import io
import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_hour.ipynb"


def test_every_cell_runs(tiny_source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(cells) == 10 and all(not cell.get("outputs") for cell in cells)
    names = {"__name__": "__main__"}
    shown = []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(tree, "a cell", "exec"), names)
        shown.append(out.getvalue())
        if "parameters" in cell["metadata"].get("tags", ()):
            names["SOURCE"] = {
                "source.kind": "jsonl",
                "source.path": str(tiny_source),
                "tokenizer.vocab_size": 300,
                "prepare.workers": 1,
            }
            names["SETTINGS"] = {
                "model.hidden_size": 32,
                "model.num_hidden_layers": 1,
                "model.vocab_size": 384,
                "train.steps": 20,
                "evaluate.every": 10,
                "evaluate.tokens": 512,
                "evaluate.prompts": [],
                "train.global_batch_tokens": 512,
                "schedule.warmup_steps": 2,
                "checkpoint.every": 10,
            }
    assert names["outcome"]["step"] == 20
    assert "20 steps" in shown[4] and "step 20: " in shown[5] and shown[6].count("\n") == 2
    for made in ("dataset/manifest.json", "run/report.html", "huggingface/model.safetensors"):
        assert (tmp_path / "first-hour" / made).is_file()
