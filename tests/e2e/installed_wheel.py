"""Decides whether a wheel is whole: installed by itself in a clean folder, it has every file and answers.

`make dist` calls it with the folder of the wheel, and a test with one of its own.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

NEEDED = ("py.typed", "__init__.pyi", "report/page.css", "report/page.js")


def check_wheel(folder: Path) -> str:
    """Installs the one wheel in `folder` without what it depends on, and gives what `packtrain --help` of it prints."""
    [wheel] = folder.glob("*.whl")
    with tempfile.TemporaryDirectory() as target:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            target,
            str(wheel),
        ]
        subprocess.run(pip, check=True)
        package = Path(target) / "packtrain"
        missing = [name for name in NEEDED if not (package / name).is_file()]
        for kind in ("presets", "recipes"):
            source = Path(__file__).parents[2] / "src" / "packtrain" / "config" / kind
            missing += [
                file.name for file in source.glob("*.toml") if not (package / "config" / kind / file.name).is_file()
            ]
        if missing:
            raise SystemExit(f"{wheel.name} lacks {', '.join(missing)}; see package-data in pyproject.toml")
        asked = "import packtrain, sys; sys.stdout.write(packtrain.__file__ + chr(10)); from packtrain.__main__ import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", asked, "--help"],
            env={**os.environ, "PYTHONPATH": target},
            cwd=target,
            capture_output=True,
            text=True,
            check=True,
        )
        where, _, shown = done.stdout.partition("\n")
        assert Path(where).is_relative_to(target), where
        return shown


if __name__ == "__main__":
    check_wheel(Path(sys.argv[1]))
    print(f"{sys.argv[1]}: the wheel has every file, and `packtrain --help` of it answers")
