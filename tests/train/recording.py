"""Run in the tests of `test_distributed`: `packtrain`, and a record of the rows that each step of each rank gets.

`python -m tests.train.recording FOLDER ARGUMENTS` appends to FOLDER/rank-N.jsonl one list of row hashes a step.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from packtrain.cli.main import main
from packtrain.train import loop


def record(folder: Path) -> None:
    real_step = loop.train_step

    def step(model, optimizer, batch, placement, **settings):
        rows = torch.cat([batch.rows.inputs_BT, batch.rows.targets_BT], dim=1).numpy()
        with (folder / f"rank-{placement.ranks.rank}.jsonl").open("a") as file:
            file.write(json.dumps([hashlib.sha256(row.tobytes()).hexdigest() for row in rows]) + "\n")
        return real_step(model, optimizer, batch, placement, **settings)

    loop.train_step = step


if __name__ == "__main__":
    recorded = Path(sys.argv.pop(1))
    recorded.mkdir(exist_ok=True)
    record(recorded)
    sys.argv[0] = "packtrain"
    os.environ.setdefault("RANK", "0")
    main()
