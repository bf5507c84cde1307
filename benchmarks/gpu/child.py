"""Decides how cases are kept apart: a process for each group of cases, which is ended if it runs over."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
OUT_OF_MEMORY = "out of memory"


class Child:
    """A process that runs one task at a time. What it prints beside its answers is added to `log`.

    Its compiled kernels are kept in `cache`, unless TORCHINDUCTOR_CACHE_DIR names another folder. It and all that it starts
    form a process group of their own.
    """

    def __init__(self, device: str, log: Path, cache: Path) -> None:
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(cache.resolve()), **os.environ}
        command = [sys.executable, "-m", "benchmarks.gpu.worker", device]
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
        self._rest = b""

    def run(self, task: Figures, limit_s: float) -> Figures:
        """The answer to `task`; {"failed": why} if there is none within the limit. Then the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(task) + "\n").encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._explain_end()
        return self.read(limit_s)

    def read(self, limit_s: float) -> Figures:
        """The next answer. The first one, which no task asks for, describes the device."""
        assert self._process.stdout is not None
        end = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, end - time.monotonic())):
                    self.end()
                    return {"failed": f"ended after {limit_s:.0f} s"}
                read = os.read(self._process.stdout.fileno(), 2**16)
                if not read:
                    return self._explain_end()
                self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        answer: Figures = json.loads(line)
        if answer.get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY:
            # A failed kernel can leave the whole process without its device.
            self.end()
        return answer

    @property
    def has_ended(self) -> bool:
        """Whether it can take no further task."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Ends the process and all that it started."""
        if not self.has_ended:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            # What was written to a process that has ended is lost.
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()

    def _explain_end(self) -> Figures:
        code = self._process.wait()
        self.end()
        if code == -signal.SIGKILL:
            return {"failed": "killed, perhaps because the machine's memory ran out"}
        return {"failed": f"the process ended with exit code {code}; its log says why"}
