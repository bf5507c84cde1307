"""Runs one of them once, and prints a line of figures.

    python -m benchmarks.preparers NAME JOB

JOB is JSON: `text`, a folder of parquet files; `tokenizer`, a folder whose tokenizer.json puts BOS before and EOS after a text;
`workers`; `out`, a folder that is not there yet. Runs in the tool's own environment. The clock starts when its libraries are
imported and ends when its files are written: the start of its worker processes is in it, counting what they wrote is not.
"""

import contextlib
import importlib
import json
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    """Prepare, then say how long it took and what came of it."""
    name, job = sys.argv[1], json.loads(sys.argv[2])
    text, tokenizer, out = (Path(job[key]) for key in ("text", "tokenizer", "out"))
    # Standard output carries figures alone.
    with contextlib.redirect_stdout(sys.stderr):
        tool = importlib.import_module(f"benchmarks.preparers.{name}")
        start, before = time.perf_counter(), _processor_seconds()
        own = tool.prepare(text, tokenizer, job["workers"], out)
        figures = {"seconds": time.perf_counter() - start, "processor_seconds": _processor_seconds() - before}
        documents, tokens = tool.outcome(out)
    print(json.dumps({**figures, **(own or {}), "documents": documents, "tokens": tokens}), flush=True)


def _processor_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
