"""The real command line, called in this process."""

import io
import json
import logging
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from packtrain.cli.main import main


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def documents(self) -> dict[str, Any]:
        """The ledger's counts of documents, of `prepare --json`."""
        assert self.code == 0, self.err
        counts: dict[str, Any] = json.loads(self.out)["ledger"]["documents"]
        return counts

    @property
    def json(self) -> dict[str, Any]:
        """What `--json` printed."""
        assert self.code == 0, self.err
        printed: dict[str, Any] = json.loads(self.out)
        return printed

    @property
    def sentence(self) -> str:
        """What was refused, and why: the whole of what is on standard error but for the progress bar."""
        assert self.code != 0, self.out
        before, _, told = self.err.rpartition("\nerror: ")
        assert "\n" not in told.strip(), "one line"
        assert "Traceback" not in before
        return told


def packtrain(*words: object) -> Done:
    """Run a verb as the shell would; an exception that escapes `main` fails the test with its traceback."""
    out, err = io.StringIO(), io.StringIO()
    log = logging.getLogger("packtrain")
    before = log.handlers[:], log.propagate, log.level
    # Another test's handlers would stand in for the command line's own.
    log.handlers.clear()
    try:
        with (
            mock.patch.object(sys, "argv", ["packtrain", *map(str, words)]),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            main()
        code = 0
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        code = ended.code
    finally:
        log.handlers[:], log.propagate = before[0], before[1]
        log.setLevel(before[2])
    return Done(code, out.getvalue(), err.getvalue())


def prepare(kind: str, source: Path, out: Path, *settings: str) -> Done:
    """`packtrain prepare` of a source, with a vocabulary of 300, in this process alone."""
    where = f"source.function={source}:documents" if kind == "function" else f"source.path={source}"
    given = (f"source.kind={kind}", where, "tokenizer.vocab_size=300", "prepare.workers=1", *settings)
    return packtrain("prepare", "stdlib", *given, "--out", out, "--json")
