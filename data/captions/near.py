"""Names in captions that differ from an image's key only by suffix, case or zeros: they are named, not guessed.

Tables often lose them: a spreadsheet turns 000042 into 42, and a tool writes the names without .jpg.
"""

import itertools
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath

_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
_FORMS: Mapping[str, Callable[[str], str]] = {
    "case": str.casefold,
    "suffix": lambda key: re.sub(r"\.[A-Za-z][A-Za-z0-9]{0,4}$", "", key),
    "leading zeros": lambda key: _ZEROS.sub("", key),
    "folder": lambda key: PurePosixPath(key).name,
}


def describe_near(names: Collection[str], keys: Collection[str], *, across_folders: bool = False) -> str:
    """How `names`, images that captions name, differ from `keys`, those with features; "" if none is near.

    The differences are tried one by one, then together; the first that makes most names equal to keys is shown with an
    example. With `across_folders` the names may be in other folders too; if only the folder differs, none is near.
    """
    best, found = tuple[str, ...](), dict[str, str]()
    forms = [name for name in _FORMS if across_folders or name != "folder"]
    for count in range(1, len(forms) + 1):
        for chosen in itertools.combinations(forms, count):
            near = _near(names, keys, chosen)
            if len(near) > len(found):
                best, found = chosen, near
    if not found or best == ("folder",):
        return ""
    name, key = next(iter(found.items()))
    by = f"{', '.join(best[:-1])} and {best[-1]}" if len(best) > 1 else best[0]
    what = "1 of them differs" if len(found) == 1 else f"{len(found)} of them differ"
    return (
        f"{what} from images with features only by {by}: {name} is not {key}; write the names as they are in the store"
    )


def _near(names: Collection[str], keys: Collection[str], chosen: tuple[str, ...]) -> dict[str, str]:
    """The names that are keys but for the `chosen` differences, with their keys."""
    stored: dict[str, str] = {}
    for key in keys:
        stored.setdefault(_form_without(key, chosen), key)
    forms = ((name, _form_without(name, chosen)) for name in names)
    return {name: stored[form] for name, form in forms if form in stored}


def _form_without(key: str, chosen: tuple[str, ...]) -> str:
    for difference in chosen:
        key = _FORMS[difference](key)
    return key
