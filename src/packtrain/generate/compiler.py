"""Decides where the compiled step comes from: `step.c`, built once for this CPU by the C compiler that is there."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("step.c")
# No -ffast-math: it would let the compiler add numbers up in another order for another number of tokens.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-pthread", "-std=gnu11")
_SECONDS = 120


@functools.cache
def load_step() -> ctypes.CDLL | None:
    """The library with `run_step`; None if there is no C compiler, or it cannot build it.

    The first call on a machine takes about two seconds. `PACKTRAIN_COMPILED_STEP=0` turns it off.
    """
    compiler = find_compiler()
    if compiler is None:
        return None
    name = f"step-{_fingerprint(compiler)}.so"
    for folder in _folders():
        try:
            return _open_or_build(folder / name, compiler)
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def find_compiler() -> str | None:
    """The path of the C compiler: `CC` if set, else cc, gcc or clang."""
    if sys.platform == "win32" or os.environ.get("PACKTRAIN_COMPILED_STEP") == "0":
        return None
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((path for name in names if (path := shutil.which(name))), None)


def _open_or_build(path: Path, compiler: str) -> ctypes.CDLL:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Built aside and renamed, so that another process never sees half a library.
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            built = Path(aside) / path.name
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(built), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
            built.replace(path)
    return ctypes.CDLL(str(path))


def _folders() -> list[Path]:
    """Where the library may be kept: the user's cache, else a folder of this process's own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packtrain"
    return [cache, Path(_private_folder())]


@functools.cache
def _private_folder() -> str:
    return tempfile.mkdtemp(prefix="packtrain-step-")


def _fingerprint(compiler: str) -> str:
    """A hash of everything that the library depends on: source, flags, compiler and CPU. Homes may be shared by machines."""
    found = Path(compiler).stat()
    facts = [_SOURCE.read_text(), *_FLAGS, compiler, found.st_size, found.st_mtime_ns, platform.machine(), _cpu_flags()]
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
