"""The tree that errors.py draws is the tree of its classes, with their exit codes."""

import re

from packtrain import errors


def tree(cls, depth=0):
    yield depth, cls.__name__, cls.exit_code
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child, depth + 1)


def test_the_drawn_tree_is_the_tree_of_classes():
    drawn, code = [], None
    for line in errors.__doc__.splitlines():
        found = re.match(r"([│├└─ ]*)([A-Z]\w+) {2,}(?:exit (\d))?", line)
        if found:
            code = int(found[3] or code)
            drawn.append((len(found[1]) // 4, found[2], code))
    assert drawn == list(tree(errors.PacktrainError))
