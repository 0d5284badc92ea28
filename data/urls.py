"""Recognises URLs and reads them through fsspec, which is imported only when needed."""

import posixpath
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from captionmill.data.errors import CaptionmillError, ImageError, InputError, one_line
from captionmill.data.optional import missing_line, require

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|(?i:(file):(?=/))")  # at least two letters: C:// is a drive
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


def is_url(text: object) -> bool:
    """Whether `text` is a URL such as s3://bucket/photos."""
    return isinstance(text, str) and _URL.match(text) is not None


def local_path(location: Path | str) -> Path | str:
    """`location`, or the local path that a file:// URL names, where a file can be replaced atomically."""
    if not is_url(location) or not _is_local(str(location)):
        return location
    return Path(open_filesystem(str(location))[1])


def parent_of(url: str) -> str:
    """`url` up to its last slash, without it."""
    return url.rstrip("/").rpartition("/")[0]


def join_url(url: str, relative: str) -> str:
    """The URL of `relative` beside `url`: `../a.png` beside s3://bucket/lists/all.txt is s3://bucket/a.png."""
    protocol, path = _split_url(url)
    return f"{protocol}://{posixpath.normpath(posixpath.join(posixpath.dirname(path), relative))}"


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of `url`, and the path of `url` within it; InputError if a package is missing."""
    fsspec = require("fsspec", extra="remote", needed_by=f"{url}:")
    try:
        filesystem, path = fsspec.core.url_to_fs(_plain_url(url))
    except ImportError as exc:  # fsspec imports the package of a protocol itself
        package = _PACKAGES.get(_split_url(url)[0], "fsspec")
        line = missing_line([package], extra="remote", needed_by=f"{url}:")
        raise InputError(f"{line} or pip install {package}") from exc
    except ValueError as exc:  # no such protocol
        raise InputError(f"{url}: {exc}") from exc
    return filesystem, _decode_local(path) if _is_local(url) else path


def _split_url(url: str) -> tuple[str, str]:
    """The protocol of `url`, in lower case, and what follows `://`; `file:/a` is file:///a (RFC 8089, appendix B)."""
    found = _URL.match(url)
    return ((found[1] or found[2]).lower(), url[found.end() :]) if found else ("", url)


def _plain_url(url: str) -> str:
    """`url` in the form that fsspec knows: its protocol in lower case, a local file without the host "localhost"."""
    protocol, rest = _split_url(url)
    if _is_local(url) and rest.lower().startswith("localhost/"):
        rest = rest[len("localhost") :]
    return f"{protocol}://{rest}"


def _is_local(url: str) -> bool:
    return _split_url(url)[0] in ("file", "local")


def _decode_local(path: str) -> str:
    """The path in a file:// URL with %20 as a space and so on, unless a file's own name has these characters."""
    literal, decoded = Path(path), Path(unquote(path))
    is_literal = literal.exists() or not (decoded.exists() or (decoded.parent.exists() and not literal.parent.exists()))
    return path if is_literal else str(decoded)


@contextmanager
def storage_errors(kind: type[CaptionmillError], what: str) -> Iterator[None]:
    """Raise `kind`, one line that begins with `what`, for any error in the block: each file system has its own."""
    try:
        yield
    except CaptionmillError:
        raise
    except Exception as exc:  # each package of a protocol has its own, without a common base
        reason = "no such file" if isinstance(exc, FileNotFoundError) else one_line(exc)
        raise kind(f"{what} ({reason})") from exc


def read_url(
    url: str, start: int | None = None, end: int | None = None, *, attempts: int = 3, pause_s: float = 0.5
) -> bytes:
    """The bytes of `url` from `start` up to `end`; ImageError if they cannot be read after so many `attempts`.

    `pause_s` is the pause before the second attempt, in seconds; each further pause is twice as long.
    """
    try:
        with storage_errors(ImageError, "cannot be fetched"):
            filesystem, path = open_filesystem(url)
            content: bytes = filesystem.cat_file(path, start=start, end=end)
    except InputError as exc:  # a package is missing
        raise ImageError(str(exc)) from exc
    except ImageError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            raise ImageError("no such file") from exc
        if isinstance(exc.__cause__, PermissionError):
            raise ImageError("permission denied") from exc
        if attempts == 1:
            raise
        time.sleep(pause_s)
        return read_url(url, start, end, attempts=attempts - 1, pause_s=2 * pause_s)
    ignores_range = end is not None and len(content) > end - (start or 0)
    return content[start:end] if ignores_range else content
