"""The key of an image, its relative POSIX path: the file that it stands for, and names that are nearly a key."""

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from captionmill.data.urls import is_url

_BACKSLASH = re.compile(r"\\(?!udc[89a-f][0-9a-f])")  # one that does not begin the escape of a byte


def image_key(name: str) -> str:
    r"""The key of an image called `name`: forward slashes, no `./`, bytes that are not UTF-8 escaped as `\udce9`.

    A URL is left unchanged, and so is a key.
    """
    if is_url(name):
        return name
    escaped = escape_name(_BACKSLASH.sub("/", name) if "\\" in name else name)
    return posixpath.normpath(escaped) if escaped else ""


def escape_name(name: str) -> str:
    r"""`name` with bytes that are not UTF-8 escaped as `\udce9`.

    It is the same in a locale in which Python reads no name as UTF-8 (C, without UTF-8 mode).
    """
    if name.isascii():
        return name
    with suppress(UnicodeEncodeError):  # half a surrogate pair, which no file system gave
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


class FileFinder:
    """Finds the files that the names in a list mean, among them the keys in a table of captions."""

    def __init__(self, folder: Path) -> None:
        """For names relative to `folder`."""
        self._folder = folder
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> Path:
        """The file called `name`, or else the one file of which it is the key, in whatever Unicode form.

        If there is none, the path where it would be.
        """
        forms = tuple(dict.fromkeys((name, name.replace("\\", "/"))))
        for form in forms:
            if os.path.lexists(self._folder / form):
                return self._folder / form
        for form in forms:
            start = self._folder / ("/" if form.startswith("/") else "")
            if (found := self._search(start, form.lstrip("/").split("/"))) is not None:
                return found
        return self._folder / forms[-1]

    def _search(self, folder: Path, parts: Sequence[str]) -> Path | None:
        """The file below `folder` with the key of these `parts`: a name may hold a backslash, and so several parts."""
        if not parts:
            return folder
        if parts[0] in ("", ".", ".."):
            return self._search(folder / parts[0], parts[1:])
        for count in range(1, len(parts) + 1):
            name = self._find_name(folder, "/".join(parts[:count]))
            if name is not None and (found := self._search(folder / name, parts[count:])) is not None:
                return found
        return None

    def _find_name(self, folder: Path, key: str) -> str | None:
        """The name in `folder` with this key, or the only one that differs from it only in its Unicode form."""
        if folder not in self._listings:
            listing = self._listings[folder] = {}
            with suppress(OSError, ValueError), os.scandir(folder) as entries:
                for entry in entries:
                    listing.setdefault(_composed(image_key(entry.name)), []).append(entry.name)
        names = self._listings[folder].get(_composed(key), [])
        same = [name for name in names if image_key(name) == key]
        return (same or names)[0] if len(same) == 1 or len(names) == 1 else None


def match_forms(names: Iterable[str], keys: Collection[str]) -> dict[str, str]:
    """Maps each of `names` that is not in `keys`, but differs from a key only in its Unicode form, to that key.

    Two texts differ only in form if they are equal in NFC. Nothing is guessed: if two names, or two keys that are not
    among the names, have the same NFC, none of them is matched.
    """
    accented_names = {name for name in names if not name.isascii()}
    accented_keys = {key for key in keys if not key.isascii()} if accented_names else set()
    keys_by_form = _by_form(accented_keys - accented_names)
    return {
        same_names[0]: keys_by_form[form][0]
        for form, same_names in _by_form(accented_names - accented_keys).items()
        if len(same_names) == 1 and len(keys_by_form.get(form, ())) == 1
    }


def _by_form(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[_composed(name)].append(name)
    return found


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
