"""The key of an image, its relative POSIX path, and names that differ from a key only in how accents are encoded."""

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable

from captionmill.data.urls import is_url


def image_key(name: str) -> str:
    r"""The key of an image called `name`: forward slashes, no `./`, bytes that are not UTF-8 escaped as `\udce9`.

    A URL stays as it is.
    """
    if is_url(name):
        return name
    escaped = name.replace("\\", "/").encode("utf-8", "backslashreplace").decode("utf-8")
    return posixpath.normpath(escaped) if escaped else ""


def match_forms(names: Iterable[str], keys: Collection[str]) -> dict[str, str]:
    """Those of `names` that are none of `keys` but differ from one in their form alone, each with that key.

    Two texts of one form are equal in NFC. Nothing is guessed: where two names have one form, or two keys that no name
    is already, none of them is matched.
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
