"""Paths may be given as strings or as `Path`: the first lines of each public function convert them with these."""

import errno
import os
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


def cache_dir(name: str) -> Path:
    """The folder `name` of what can be fetched or made again: in $CAPTIONMILL_CACHE, or the user's cache folder.

    Raises OSError for a user without a home.
    """
    if own := os.environ.get("CAPTIONMILL_CACHE"):
        return Path(own) / name
    users = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    try:
        return Path(users or Path.home() / ".cache") / "captionmill" / name
    except RuntimeError as exc:
        raise OSError(errno.ENOENT, "this user has no home; name a folder in CAPTIONMILL_CACHE") from exc
