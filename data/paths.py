"""Paths may be given as strings or as `Path`: the first lines of each public function convert them with these."""

from collections.abc import Iterable
from pathlib import Path
from typing import overload

from captionmill.data.urls import is_url

AnyPath = Path | str
"""A file or a folder, as a caller gives it."""
AnyPaths = AnyPath | Iterable[AnyPath]
"""One path, or several: a string is one path, not an iterable of letters."""


@overload
def as_path(path: AnyPath) -> Path: ...
@overload
def as_path(path: AnyPath | None) -> Path | None: ...
def as_path(path: AnyPath | None) -> Path | None:
    """`path` as a `Path`; None stays None."""
    return None if path is None else Path(path)


def as_paths(paths: AnyPaths) -> list[Path]:
    """`paths` as a list, which has one entry for a single path."""
    return [Path(paths)] if isinstance(paths, Path | str) else [Path(path) for path in paths]


def as_location(location: AnyPath) -> AnyPath:
    """`location` as a `Path`; a URL, which a `Path` would break, stays a string."""
    return location if is_url(location) else Path(location)
