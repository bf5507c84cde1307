"""Collects the wheels that a GPU machine without a network may lack beside torch and transformers.

    python -m benchmarks.offline_wheels --out offline-wheels --python-version 3.12 --platform manylinux_2_28_x86_64

Takes from pyproject.toml what may be missing there, and from each wheel what it needs in turn. Leaves out torch, NVIDIA's
wheels, and what torch and transformers bring. At the end it prints the one command that installs from the folder.
"""

import argparse
import email
import platform
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
NAMES = ("pydantic", "tomli-w", "zstandard", "torchao", "bitsandbytes")
"""What packtrain and its extras need, and an image with torch and transformers may lack."""
PRESENT = ("torch", "transformers", "numpy", "packaging", "triton", "filelock", "jinja2", "sympy", "networkx", "fsspec")
"""Not taken, as torch and transformers bring them. Nor is any name that begins with nvidia."""
# What a platform also runs. pip takes the given names alone.
_OLDER = {"manylinux_2_28": ("manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014")}


def main(arguments: list[str] | None = None) -> list[Path]:
    """Download, print the command that installs them, and return the wheels. Raises SystemExit if pip finds none of a name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline_wheels", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("offline-wheels"))
    parser.add_argument("--python-version", default=f"{sys.version_info.major}.{sys.version_info.minor}")
    parser.add_argument("--platform", default=f"manylinux_2_28_{platform.machine()}", help="of the GPU machine")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    waiting, wheels = list_requirements(), dict[str, Path]()
    while waiting:
        requirement = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if name not in wheels:
            wheels[name] = _download(requirement, options)
            waiting += needed_by(wheels[name], options.python_version)
    size = sum(wheel.stat().st_size for wheel in wheels.values())
    print(f"{len(wheels)} wheels, {size / 1e6:.1f} MB. On the machine without a network:")
    print(f"pip install --no-index --find-links {options.out} {' '.join(NAMES)}")
    return list(wheels.values())


def list_requirements(path: Path = ROOT / "pyproject.toml") -> list[Requirement]:
    """NAMES with the versions that pyproject.toml asks for."""
    project = tomllib.loads(path.read_text())["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    found = {canonicalize_name(each.name): each for each in map(Requirement, reversed(lines))}
    return [found[name] for name in NAMES]


def needed_by(wheel: Path, python_version: str) -> list[Requirement]:
    """What a wheel needs and the folder must have, on Linux and without extras."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []
    place = {"python_version": python_version, "python_full_version": f"{python_version}.0", "extra": ""}
    place |= {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    needed = [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate(place)]
    return [each for each in needed if not is_present(each.name)]


def is_present(name: str) -> bool:
    """Whether the machine has a package already."""
    return canonicalize_name(name) in PRESENT or canonicalize_name(name).startswith("nvidia-")


def _download(requirement: Requirement, options: argparse.Namespace) -> Path:
    system, *machine = re.split(r"_(?=x86_64$|aarch64$)", options.platform)
    platforms = ["_".join([each, *machine]) for each in _OLDER.get(system, (system,))]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", options.python_version, "--dest", str(options.out)]
    command += [word for each in platforms for word in ("--platform", each)]
    before = f"{requirement.name}{requirement.specifier}"
    if subprocess.run([*command, before], check=False).returncode != 0:
        raise SystemExit(f"pip finds no wheel of {before} for Python {options.python_version} on {options.platform}")
    name = canonicalize_name(requirement.name)
    found = [path for path in options.out.glob("*.whl") if parse_wheel_filename(path.name)[0] == name]
    return max(found, key=lambda path: (parse_wheel_filename(path.name)[1], path.stat().st_mtime))


if __name__ == "__main__":
    main()
