"""Decides whether the wheel that a release would publish holds what the program needs."""

import shutil
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from tests.e2e.installed_wheel import check_wheel

import packtrain

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_wheel_alone_answers_help(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(source),
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prepare" in check_wheel(tmp_path / "dist")
    [wheel] = (tmp_path / "dist").glob("*.whl")
    with ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        found = HeaderParser().parsestr(archive.read(metadata).decode())
        assert not [name for name in archive.namelist() if name.startswith("tests")]
    assert (found["Name"], found["Version"], found["License-Expression"]) == (
        *("packtrain", packtrain.__version__),
        "Apache-2.0",
    )
