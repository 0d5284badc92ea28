"""The key of an image, its relative POSIX path, and names that differ from a key only in how accents are encoded."""

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable

from captionmill.data.urls import is_url


def image_key(name: str) -> str:
    r"""The key of an image called `name`: forward slashes, no `./`, bytes that are not UTF-8 escaped as `\udce9`.

    A URL is left unchanged.
    """
    if is_url(name):
        return name
    escaped = name.replace("\\", "/").encode("utf-8", "backslashreplace").decode("utf-8")
    return posixpath.normpath(escaped) if escaped else ""


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
        found[unicodedata.normalize("NFC", name)].append(name)
    return found
