"""Run by torchrun in the tests of `test_distributed`: `packtrain`, and which threads of its process group remain at its end.

`python -m tests.train.leaving FOLDER [--stop] ARGUMENTS`, with --stop asked to stop within its first step. Each rank writes its
exit code and the names of its threads of gloo's into FOLDER/rank-N.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

from packtrain.cli.main import main
from packtrain.train import loop


def stop_in_step() -> None:
    real_step = loop.train_step

    def step(*arguments, **settings):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return real_step(*arguments, **settings)

    loop.train_step = step


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    folder.mkdir(parents=True, exist_ok=True)
    if sys.argv[1] == "--stop":
        del sys.argv[1]
        stop_in_step()
    try:
        main()
    except SystemExit as ended:
        # The error still exists here, as it does when the interpreter ends.
        threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        left = [name for name in threads if "gloo" in name]
        (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps({"code": ended.code, "left": left}))
        # Otherwise the launcher would end the other rank before it gets here.
        if ended.code != 3:
            raise
