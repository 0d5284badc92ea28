"""A path may come as a string or as a `Path`: the first lines of a public function make it a `Path`, here and once."""

from collections.abc import Iterable
from pathlib import Path
from typing import overload

from captionmill.data.urls import is_url

AnyPath = Path | str
"""A file or a folder, as a caller writes it."""
AnyPaths = AnyPath | Iterable[AnyPath]
"""One path, or several: a string is one path, never the series of its letters."""


@overload
def as_path(path: AnyPath) -> Path: ...
@overload
def as_path(path: AnyPath | None) -> Path | None: ...
def as_path(path: AnyPath | None) -> Path | None:
    """`path` as a `Path`; None stays None."""
    return None if path is None else Path(path)


def as_paths(paths: AnyPaths) -> list[Path]:
    """`paths` as a list: of one entry for a single path."""
    return [Path(paths)] if isinstance(paths, Path | str) else [Path(path) for path in paths]


def as_location(location: AnyPath) -> AnyPath:
    """`location` as a `Path`, but a URL, which a `Path` would break, as the string that it is."""
    return location if is_url(location) else Path(location)
