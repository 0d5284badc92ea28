"""The tree at the top of errors.py is the tree of the classes, and each of them is raised somewhere."""

import ast
import inspect
import re
from pathlib import Path

from captionmill.data import errors
from captionmill.data.errors import CaptionmillError

ROOT = Path(__file__).parents[2]


def drawn_parents() -> dict[str, str]:
    """Each class of the drawing with the one above it, in the order of the lines."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        if found := re.match(r"([│├└─ ]*)(\w+Error)\b", line):
            depth = len(found[1]) // 4
            parents[found[2]] = above[depth - 1] if depth else "Exception"
            above[depth:] = [found[2]]
    return parents


def classes() -> dict[str, type[BaseException]]:
    found = (value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, BaseException))
    return {value.__name__: value for value in found if value.__module__ == errors.__name__}


def test_the_tree_is_drawn_as_the_classes_are_in_their_order() -> None:
    assert list(drawn_parents().items()) == [(name, value.__bases__[0].__name__) for name, value in classes().items()]


def test_each_error_is_one_of_pythons_own_kinds_too() -> None:
    for name, value in classes().items():
        assert issubclass(value, CaptionmillError)
        assert name == "CaptionmillError" or issubclass(value, ValueError | RuntimeError)


def test_each_error_is_raised_somewhere() -> None:
    used: set[str] = set()
    for path in (path for folder in ("data", "stages", "pipeline") for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        is_needed = any(f"{name}(" in text for name in set(classes()) - used)
        for node in ast.walk(ast.parse(text)) if is_needed else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                used.add(node.func.id)
    assert set(classes()) - used == {"CaptionmillError"}
