"""Finds the images in a folder, a list, a tar or at a URL."""

import functools
import logging
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from captionmill.data.errors import ImageError, InputError
from captionmill.data.images.formats.kinds import ALL_IMAGE_SUFFIXES, IMAGE_SUFFIXES
from captionmill.data.images.keys import FileFinder, escape_name, image_key
from captionmill.data.images.lists import EXPECTED, ListedImages, find_misread, lines_of
from captionmill.data.images.read import ImageFile, has_image_header, known_ns, seconds_to_ns
from captionmill.data.images.tar import (
    COMPRESSED_SUFFIXES,
    TAR_SUFFIX,
    TarMember,
    is_compressed_tar,
    list_members,
    refuse_compressed,
)
from captionmill.data.images.walk import PassedOver, suffix_of, walk_folder
from captionmill.data.regular import is_folder, open_file_or_pipe
from captionmill.data.urls import is_url, join_url, open_filesystem, read_url, storage_errors

_logger = logging.getLogger(__name__)
_SUFFIX_INSIDE = re.compile(rf"({'|'.join(map(re.escape, IMAGE_SUFFIXES))})[^a-z0-9]", re.IGNORECASE)
_SEARCHED_SUFFIXES = ALL_IMAGE_SUFFIXES | {TAR_SUFFIX}
_TAR_ENDINGS = (TAR_SUFFIX, *COMPRESSED_SUFFIXES)


@dataclass(frozen=True)
class ImageListing:
    """The result of a search for images."""

    found: list[ImageFile]
    """Sorted by key; no two have the same."""
    left_out: PassedOver


def find_images(images: Path | str | ListedImages) -> list[ImageFile]:
    """The images that `images` names, sorted by key, as `search_images` finds them."""
    return search_images(images).found


def search_images(images: Path | str | ListedImages) -> ImageListing:
    """The images that `images` names, and what was left out.

    `images` is one of these, or the URL of one (a list at a URL must end in .txt):

    - a folder: its images and those below it, in whatever format, and the images in every .tar there. Hidden entries
      and the folders of thumbnails and bins are left out (`walk_folder`). A file without a suffix counts if its first
      bytes are those of an image.
    - a .tar: its images.
    - any other file: a UTF-8 list with one path or URL per line. Relative paths start at the folder of the list.
    - `ListedImages`: images, tars and folders by name.

    A listed file that does not exist is kept, so that reading it fails and is reported. So are a subfolder that cannot
    be listed, a damaged tar among other files, and the second of two files whose names are the same key. Raises
    InputError if there is nothing to work on, or if a list holds more than paths, such as quotes or labels.
    """
    nothing = f"no image in this folder or below it; looked for {' '.join(IMAGE_SUFFIXES)} {TAR_SUFFIX}"
    left_out = PassedOver()
    if isinstance(images, ListedImages):
        return _found(images, _read_names(images, left_out), left_out, "no image is named")
    location = images if is_url(images) else Path(images)
    refuse_compressed(location)
    if _suffix(location) == TAR_SUFFIX and not (isinstance(location, Path) and is_folder(location)):
        listed: Iterator[_Named] = iter((_Named(TAR_SUFFIX, ImageFile("", location)),))
        nothing = "no image in this tar"
    elif isinstance(location, str) and _suffix(location) != ".txt":
        listed = _walk_url(location, left_out)
    elif isinstance(location, Path) and is_folder(location):
        listed = _walk(location, left_out)
    else:
        listed = _read_list(location)
        nothing = "the list is empty; write one image path per line"
    return _found(location, listed, left_out, nothing)


def _found(
    images: Path | str | ListedImages, listed: Iterable["_Named"], left_out: PassedOver, nothing: str
) -> ImageListing:
    found = _one_per_key(named for image in listed for named in _expand(image, left_out))
    if not found:
        others = f" (left out: {left_out.describe()})" if left_out.describe() else ""
        raise InputError(f"{images}: {nothing}{others}")
    return ImageListing([found[key] for key in sorted(found)], left_out)


@dataclass(frozen=True, slots=True)
class _Named:
    """An image with its own name, of which its key is made."""

    name: str
    image: ImageFile


def _one_per_key(named: Iterable[_Named]) -> dict[str, ImageFile]:
    """The images by key; of two files with one key, that with this very name, and the other under its own name."""
    by_key: dict[str, _Named] = {}
    others: list[_Named] = []
    for one in named:
        known = by_key.setdefault(one.image.key, one)
        if known is one or _is_same_file(known.image, one.image):
            continue
        if one.name == one.image.key and not one.image.problem:
            by_key[one.name] = one
            others.append(known)
        else:
            others.append(one)
    found = {key: one.image for key, one in by_key.items()}
    for one in others:
        key = name = escape_name(one.name)
        number = 1
        while key in found:
            number += 1
            key = f"{name} ({number})"
        problem = f"another file has the same name with forward slashes, {one.image.key}; rename one of them"
        found[key] = replace(one.image, key=key, problem=one.image.problem or problem)
    return found


def _is_same_file(one: ImageFile, other: ImageFile) -> bool:
    """Whether two images with one key are one file, which a list may name twice."""
    if one.offset != other.offset or isinstance(one.path, str) or isinstance(other.path, str):
        return (one.path, one.offset) == (other.path, other.offset)
    with suppress(OSError, ValueError):
        return one.path == other.path or one.path.samefile(other.path)
    return True


def _suffix(location: Path | str) -> str:
    return PurePosixPath(location).suffix.lower()


def _expand(named: _Named, left_out: PassedOver) -> Iterator[_Named]:
    """The image itself, or the images inside it if it is a tar; InputError for a damaged tar without a key."""
    image = named.image
    if image.problem or not named.name.lower().endswith(_TAR_ENDINGS):
        yield named
        return
    refuse_compressed(image.path)
    replaced: list[TarMember] = []
    try:
        members = list_members(image.path, replaced)
    except ImageError as exc:
        if not image.key:
            raise InputError(f"{image.path}: {exc}") from exc
        yield replace(named, image=replace(image, problem=str(exc)))
        return
    by_name = {member.name: member for member in members}
    for member in (*members, *replaced):
        path = PurePosixPath(member.name)
        if member.name.lower().endswith(_TAR_ENDINGS):
            left_out.nested += 1
        elif path.suffix.lower() in ALL_IMAGE_SUFFIXES and not left_out.passes(path.parts):
            last = by_name.get(member.name)  # None if a link to nowhere replaces it
            name = f"{named.name}/{member.name}" if image.key else member.name
            key = image_key(f"{image.key}/{member.name}".lstrip("/"))
            found = ImageFile(key, image.path, member.offset, member.size, member.modified_ns)
            if last is member:
                yield _Named(name, found)
            elif last is None or member.written_name == last.written_name:  # as tar -r adds a newer one
                left_out.replaced += 1
            else:
                own_name = f"{named.name}/{member.written_name}" if image.key else member.written_name
                problem = f"a later member, {last.written_name}, unpacks to the same file; rename one of them"
                yield _Named(own_name, replace(found, problem=problem))


def _walk(root: Path, left_out: PassedOver) -> Iterator[_Named]:
    """Images and tars in and below `root`, and folders that cannot be listed."""
    try:
        walked = walk_folder(root, left_out)
    except OSError as exc:
        raise InputError(f"{root}: cannot list this folder ({exc.strerror}); make it readable") from exc
    start = len(f"{root}".rstrip(os.sep)) + 1
    for entry, error in walked:
        suffix = suffix_of(entry.name)
        problem = ""
        if error:
            reason = (error.strerror or str(error)).lower()
            problem = f"a folder that cannot be listed ({reason})"
        elif _passes_compressed(entry.path, left_out) or not (
            suffix in _SEARCHED_SUFFIXES or _is_image_by_content(entry, suffix)
        ):
            continue
        name = entry.path[start:].replace(os.sep, "/")
        yield _Named(name, ImageFile(image_key(name), Path(entry.path), problem=problem))


def _passes_compressed(place: str, left_out: PassedOver) -> bool:
    """Whether a search passes over what is at `place` as a compressed tar; it is counted and named then."""
    if not is_compressed_tar(place):
        return False
    left_out.compressed += 1
    _logger.warning("%s: a compressed tar, left out; unpack it, or make it a plain .tar", place)
    return True


def _is_image_by_content(entry: os.DirEntry[str], suffix: str) -> bool:
    """Whether a file without a suffix, or with more behind an image's, such as a.jpg?w=80, begins as an image does."""
    return (not suffix or _SUFFIX_INSIDE.search(entry.name) is not None) and has_image_header(Path(entry))


def _walk_url(url: str, left_out: PassedOver) -> Iterator[_Named]:
    """Images and tars in and below the remote folder `url`."""
    filesystem, root = open_filesystem(url.rstrip("/"))
    with storage_errors(InputError, f"{url}: cannot be listed"):
        filesystem.invalidate_cache()  # it may remember what was there earlier in this process
        listed = filesystem.find(root, detail=True)
    for path, details in listed.items():
        name = posixpath.relpath(path, root)
        suffix = suffix_of(posixpath.basename(name))
        full = filesystem.unstrip_protocol(path)
        if not (suffix in _SEARCHED_SUFFIXES or is_compressed_tar(name)) or left_out.passes(name.split("/")):
            continue
        if not _passes_compressed(full, left_out):
            yield _Named(name, ImageFile(image_key(name), full, None, details.get("size"), _modified_ns(details)))


def _modified_ns(details: dict[str, object]) -> int:
    """The time of a file's last change in nanoseconds, under any of the names that servers use; 0 if missing."""
    for name in ("LastModified", "mtime", "updated", "last_modified", "created"):
        value = details.get(name)
        if isinstance(value, int | float):
            return seconds_to_ns(value)
        if value is not None and hasattr(value, "timestamp"):
            return known_ns(int(value.timestamp() * 1_000_000_000))
    return 0


def _is_listed_image(files: FileFinder | None, name: str) -> bool:
    """Whether `name`, as a whole line of a list, is one of `files`, or a URL; `files` is None for a list at a URL."""
    if is_url(name) or files is None:
        return is_url(name) and not any(map(str.isspace, name))
    try:
        return files.find(name).exists()
    except (OSError, ValueError):  # a name that is too long
        return False


def is_single_image(location: Path | str) -> bool:
    """Whether a file is an image, maybe a damaged one, rather than a list.

    It is one if it has the suffix of an image or, without a suffix, the first bytes of one. A URL is one by its suffix.
    """
    suffix = _suffix(location)
    if isinstance(location, str):
        return suffix in ALL_IMAGE_SUFFIXES
    return location.is_file() and (suffix in ALL_IMAGE_SUFFIXES or (not suffix and has_image_header(location)))


def _read_list(location: Path | str) -> Iterator[_Named]:
    """The images that the lines of a list name."""
    if isinstance(location, Path) and is_single_image(location):
        raise InputError(f"{location}: one image; {EXPECTED}")
    try:
        if isinstance(location, str):
            data = read_url(location)
        else:
            with open_file_or_pipe(location) as file:
                data = file.read()
    except (OSError, ImageError) as exc:
        raise InputError(f"{location}: {getattr(exc, 'strerror', None) or exc}; {EXPECTED}") from exc
    names = lines_of(data, str(location))
    files = FileFinder(location.parent) if isinstance(location, Path) else None
    if found := find_misread(names, functools.partial(_is_listed_image, files)):
        raise InputError(f"{location}: {found}")
    for name in filter(None, names):
        if is_url(name):
            path: Path | str = name
        else:
            path = files.find(name) if files is not None else join_url(str(location), image_key(name))
        yield _Named(name, ImageFile(image_key(name), path))


def _read_names(images: ListedImages, left_out: PassedOver) -> Iterator[_Named]:
    """The images named one by one, and those in folders among them; InputError for another kind of file."""
    files = FileFinder(Path())
    if images.is_list and (found := find_misread(images.names, functools.partial(_is_listed_image, files))):
        raise InputError(f"{images}: {found}")
    for name in filter(None, images.names):
        path = name if is_url(name) else files.find(name)
        if isinstance(path, str) or not is_folder(path):
            is_image = isinstance(path, str) or not path.is_file() or has_image_header(path)
            is_called_so = name.lower().endswith((*ALL_IMAGE_SUFFIXES, *_TAR_ENDINGS))
            if not (images.is_list or is_image or is_called_so):
                raise InputError(f"{path}: not an image; give a list of images by itself")
            yield _Named(name, ImageFile(image_key(name), path))
            continue
        for named in _walk(path, left_out):
            below = f"{name.rstrip('/')}/{named.name}"
            yield _Named(below, replace(named.image, key=image_key(below)))
