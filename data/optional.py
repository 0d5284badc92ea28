"""Packages that an installation may lack: what is missing, what needs it, and the command that installs it."""

import importlib
import importlib.util
from typing import Any

from captionmill.data.errors import InputError


def require(name: str, *, extra: str, needed_by: str) -> Any:
    """The module `name`, imported; InputError with the command that installs it if its package is missing.

    `extra` is captionmill's extra that brings the package, `needed_by` what asks for it, in words.
    """
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        package = name.partition(".")[0]
        raise InputError(missing_line([package], extra=extra, needed_by=needed_by)) from exc


def missing_packages(*names: str) -> list[str]:
    """Those of the packages `names` that are not installed; nothing is imported."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def missing_line(packages: list[str], *, extra: str, needed_by: str) -> str:
    """One line: `needed_by` needs `packages`, and what to run to have them."""
    what = f"the package {packages[0]}" if len(packages) == 1 else ", ".join(packages)
    return f"{needed_by} needs {what}; run: {install_command(extra)}"


def install_command(extra: str) -> str:
    """The command that installs the packages of captionmill's `extra`."""
    return f"pip install 'captionmill[{extra}]'"
