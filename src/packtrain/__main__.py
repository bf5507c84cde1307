"""`python -m packtrain`, which is what torchrun starts, and the `packtrain` command."""

import os
import sys

from packtrain.cli.first_screen import first_screen
from packtrain.cli.interrupts import answer_signals, keep_code


def main() -> None:
    """Runs the command line. Signals are answered before anything that takes long is imported."""
    answer_signals()
    # Else pydantic reads the entry points of every installed package, which takes a tenth of the time of `config`.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(first_screen(), end="")
        return
    from packtrain.cli.main import main as run

    try:
        run()
    except SystemExit as ended:
        keep_code(ended.code if isinstance(ended.code, int) else 1)
        raise


if __name__ == "__main__":
    main()
