"""One name in two forms of Unicode: file names of a Mac have accents apart from their letters, typed ones have not."""

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable


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
