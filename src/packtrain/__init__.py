"""Raw text in, a trained Llama out, with nothing lost.

    import packtrain as pt

The functions are the verbs of the command line: `pt.prepare`, `pt.train`, `pt.load(RUN).generate`. docs/python.md shows each.
Importing this takes milliseconds; a function imports what it needs when it is first used.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# Where each name is defined. `__init__.pyi` has the same names, for editors and type checkers.
_HOMES = {
    **dict.fromkeys(("prepare", "estimate", "train_tokenizer", "import_dataset", "verify", "diff"), "api.data"),
    **dict.fromkeys(("open_dataset", "Documents", "PreparedDocument", "TrainingRows"), "api.documents"),
    "inspect": "api.inspection",
    **dict.fromkeys(("doctor", "runs"), "api.checking"),
    **dict.fromkeys(
        ("load_config", "plan", "ladder", "train", "resume", "metrics", "RunMetrics", "report"), "api.training"
    ),
    "evaluate": "api.measuring",
    **dict.fromkeys(("load", "LoadedModel"), "api.models"),
    **dict.fromkeys(("export", "push"), "api.exporting"),
    "serve": "api.serving",
    **dict.fromkeys(("PacktrainError", "UserError", "GuardError", "Interrupted"), "errors"),
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"packtrain has no '{name}'; it has {', '.join(sorted(_HOMES))}")
    found = getattr(importlib.import_module(f"packtrain.{_HOMES[name]}"), name)
    if importlib.util.find_spec(f"packtrain.{name}") is not None:
        # Also the name of a room: `packtrain.train` is the function, and `packtrain.train.run` is still that module.
        found.__dict__ = importlib.import_module(f"packtrain.{name}").__dict__
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps a verb a function: Python binds a package's modules to their names when they are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
