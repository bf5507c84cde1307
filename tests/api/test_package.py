"""Decides whether `import packtrain` is quick, offers the verbs as functions, and leaves the package's modules as they are."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import packtrain as pt

STUB = Path(pt.__file__).with_suffix(".pyi")


def test_import_loads_nothing_heavy():
    code = "import sys, packtrain; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pyarrow", "pydantic", "rich", "typer", "transformers"} & set(loaded)


def test_every_name_is_there_and_editors_see_it():
    listed = {
        name.asname
        for node in ast.parse(STUB.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert listed | {"__version__"} == set(pt.__all__) == set(dir(pt))
    for name in listed:
        assert inspect.getdoc(getattr(pt, name)), name


@pytest.mark.parametrize("name", ["prepare", "plan", "train", "evaluate", "export", "report"])
def test_a_verb_that_is_also_a_room_is_a_function(name):
    verb, room = getattr(pt, name), importlib.import_module(f"packtrain.{name}")
    assert inspect.isfunction(verb) and getattr(pt, name) is verb
    assert inspect.ismodule(room) and room is sys.modules[f"packtrain.{name}"]
    assert verb.__name__ == name and inspect.signature(verb).return_annotation != inspect.Signature.empty
    # What `import packtrain.train.run` and `mock.patch("packtrain.train.run...")` need.
    modules = [path.stem for path in Path(room.__file__).parent.glob("*.py") if path.stem != "__init__"]
    inner = importlib.import_module(f"packtrain.{name}.{modules[0]}")
    assert getattr(verb, modules[0]) is inner


def test_modules_of_a_room_can_be_imported_by_their_path():
    code = (
        "import packtrain.plan.devices as d, packtrain; assert callable(packtrain.plan) and packtrain.plan.devices is d"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"packtrain has no 'trian'; it has .*train"):
        pt.trian  # noqa: B018
