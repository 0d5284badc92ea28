"""Finds the images of a table of captions, which knows only their keys."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from captionmill.data.errors import InputError
from captionmill.data.features.log import read_records
from captionmill.data.features.store import cache_path_for
from captionmill.data.images.find import find_images
from captionmill.data.images.read import ImageFile
from captionmill.data.paths import AnyPath, as_location
from captionmill.data.urls import is_url

_TRIED = 100  # keys, to find out whether a folder is the right one


def images_of_table(table: Path, keys: Sequence[str], images: AnyPath | None = None) -> dict[str, ImageFile]:
    """The images with these `keys`, by key; those that are not found are left out.

    `images` is what was captioned: a folder, a list, a tar or a URL. Without it they are looked for where the log
    beside the table says, in the folder of the table and in the folders there. Raises InputError if none is found.
    """
    if images is not None:
        found = _listed(as_location(images), keys)
        if not found and keys:
            raise InputError(f"{images}: holds no image of {table}")
        return found
    found = _listed_in_log(table, keys) or _nearby(table.parent, keys)
    found |= {key: ImageFile(key, key) for key in keys if is_url(key)}
    if not found and keys:
        raise InputError(f"{table}: none of its images is in its folder or in the folders there; pass `images`")
    return found


def _listed(images: Path | str, keys: Iterable[str]) -> dict[str, ImageFile]:
    wanted = set(keys)
    return {image.key: image for image in find_images(images) if image.key in wanted}


def _listed_in_log(table: Path, keys: Sequence[str]) -> dict[str, ImageFile]:
    """Those where the last extraction for this table found them."""
    records = read_records(cache_path_for(table))
    if not records:
        return {}
    images = as_location(records[-1].images)
    if isinstance(images, Path) and not images.exists():
        return {}
    try:
        return _listed(images, keys)
    except InputError:  # it is empty by now
        return {}


def _nearby(folder: Path, keys: Sequence[str]) -> dict[str, ImageFile]:
    """Those in whichever has most of them: `folder` or one of the folders in it."""
    files = [key for key in keys if not is_url(key)]
    tried = files[:: max(1, len(files) // _TRIED)]
    best = max(_folders(folder), key=lambda candidate: sum((candidate / key).is_file() for key in tried))
    return {key: ImageFile(key, best / key) for key in files if (best / key).is_file()}


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    yield from sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir())
