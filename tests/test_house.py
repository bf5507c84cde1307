"""Decides whether the source keeps the rules of the house: sizes, opening sentences, names and words."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "packtrain"
MODULES = sorted(SOURCE.rglob("*.py"))
TEST_MODULES = sorted(path for path in (ROOT / "tests").rglob("*.py") if path.name != "__init__.py")

MAX_FILE_LINES = 300
LONGER_FILES: dict[str, str] = {}
"""Files that may be longer, each with the reason."""
MAX_FUNCTION_LINES = 60
LONGER_FUNCTIONS: dict[str, str] = {}
"""Functions that may be longer, as `file.py::name`, each with the reason."""

# Names for what has no room of its own: then the rooms are wrong.
NO_ROOM = re.compile(r"utils?|common|helpers?|misc|manager")

# Words that this project does not use, and what it writes instead.
WORDS = {
    r"\banew\b": "again",
    r"\bgo(es|ing)? on\b": "continue, resume",
    r"\blets? go of\b": "free",
    r"\bdo(es)? not divide\b": "is not a multiple of",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bso (many|much) (of|as)\b": "that many",
    r"\bis no (device|run|dataset|folder|file|text|number)\b": "is not a ...",
    r"\bholds? nothing out\b": "has no validation split",
}


def name_of(path):
    return path.relative_to(SOURCE if SOURCE in path.parents else ROOT).as_posix()


def functions_of(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_a_file_is_read_in_one_sitting():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    too_long = {name for name, count in lines.items() if count > MAX_FILE_LINES}
    assert too_long == set(LONGER_FILES), {name: lines[name] for name in too_long ^ set(LONGER_FILES)}


def test_a_function_is_on_one_screen():
    lines = {
        f"{name_of(path)}::{node.name}": node.end_lineno - node.lineno + 1
        for path in MODULES
        for node in functions_of(ast.parse(path.read_text()))
    }
    too_long = {name for name, count in lines.items() if count > MAX_FUNCTION_LINES}
    assert too_long == set(LONGER_FUNCTIONS), {name: lines[name] for name in too_long ^ set(LONGER_FUNCTIONS)}


def test_every_module_opens_with_a_sentence():
    openings = {
        name_of(path): (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
        for path in [*MODULES, *TEST_MODULES]
    }
    assert {name: opening for name, opening in openings.items() if not opening.endswith((".", "?"))} == {}


def test_no_two_classes_share_a_name():
    homes = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(name_of(path))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_no_private_name_is_imported_from_another_module():
    found = [
        f"{name_of(path)} imports {node.module}.{alias.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("packtrain")
        for alias in node.names
        if re.match(r"_[a-z]", alias.name)
    ]
    assert found == []


def test_every_file_has_a_room():
    assert [name_of(path) for path in MODULES if NO_ROOM.fullmatch(path.stem)] == []


def test_tests_are_functions():
    found = [
        f"{name_of(path)}::{node.name}"
        for path in TEST_MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test")
    ]
    assert found == []


def test_only_parallel_imports_torch_distributed():
    found = []
    for path in MODULES:
        if path.parent.name == "parallel":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            else:
                continue
            found += [f"{name_of(path)}: {name}" for name in names if name.startswith("torch.distributed")]
    assert found == []


def test_text_uses_the_words_of_the_field():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.toml"), *MODULES]
    found = [
        f"{page.relative_to(ROOT)}:{number}: {match[0]!r}, write {instead!r}"
        for page in pages
        for number, line in enumerate(page.read_text().splitlines(), 1)
        for word, instead in WORDS.items()
        if (match := re.search(word, line, re.IGNORECASE))
    ]
    assert found == []
