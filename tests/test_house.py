"""The rules of the code's layout that import-linter cannot check."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "packtrain"


def uses_of_torch_distributed(tree: ast.AST) -> Iterator[int]:
    """Lines that import `torch.distributed` or a module of it, or reach it as an attribute of `torch`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        if any(f"{name}.".startswith("torch.distributed.") for name in names):
            yield node.lineno


def test_torch_distributed_only_in_parallel():
    """import-linter sees only `torch`, not which module of it."""
    users = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.parent.name != "parallel"
        for line in uses_of_torch_distributed(ast.parse(path.read_text()))
    ]
    assert users == []


def test_every_way_to_torch_distributed_is_seen():
    for line in (
        "import torch.distributed as dist",
        "import torch.distributed.tensor",
        "from torch import distributed",
        "from torch.distributed.tensor import DTensor",
        "torch.distributed.barrier()",
    ):
        assert list(uses_of_torch_distributed(ast.parse(line))) != [], line
    assert list(uses_of_torch_distributed(ast.parse("from torch.nn import parallel"))) == []
