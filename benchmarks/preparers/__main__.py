"""Runs one preparer once, and prints a line of figures.

    python -m benchmarks.preparers NAME JOB

JOB is JSON: `text`, a folder of parquet files; `tokenizer`, a folder whose tokenizer.json adds BOS before and EOS after a text;
`workers`; `out`, a folder that does not exist yet. Runs in the tool's own environment. The clock starts when its libraries are
imported and stops when its files are written. It includes the start of worker processes, but not the counting of what they wrote.
"""

import contextlib
import importlib
import json
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    """Prepare the text, then print how long it took and how many documents and tokens it made."""
    name, job = sys.argv[1], json.loads(sys.argv[2])
    text, tokenizer, out = (Path(job[key]) for key in ("text", "tokenizer", "out"))
    # Standard output is for figures only.
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
