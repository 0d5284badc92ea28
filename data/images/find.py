"""Finds the images in a folder, a list, a tar or at a URL."""

import functools
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from captionmill.data.errors import ImageError, InputError
from captionmill.data.images.keys import image_key
from captionmill.data.images.lists import find_misread
from captionmill.data.images.read import ImageFile, has_image_header
from captionmill.data.images.tar import TAR_SUFFIX, is_compressed_tar, list_members, refuse_compressed
from captionmill.data.urls import is_url, join_url, open_filesystem, read_url

_logger = logging.getLogger(__name__)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def find_images(images: Path | str) -> list[ImageFile]:
    """The images that `images` names, sorted by key.

    `images` is one of these, or the URL of one (a list at a URL must end in .txt):

    - a folder: its images and those below it, and the images in every .tar there. Hidden entries are left out. A file
      without a suffix counts if its first bytes are those of an image.
    - a .tar: its images.
    - any other file: a UTF-8 list with one path or URL per line. Relative paths start at the folder of the list.

    A listed file that does not exist is kept, so that reading it fails and is reported. So are a subfolder that cannot
    be listed, and a damaged tar among other files. Raises InputError if there is nothing to work on, or if a list
    holds more than paths, such as quotes or labels.
    """
    location = images if is_url(images) else Path(images)
    refuse_compressed(location)
    nothing = f"no image in this folder or below it; looked for {' '.join(IMAGE_SUFFIXES)} {TAR_SUFFIX}"
    names_are_files = True
    if _suffix(location) == TAR_SUFFIX and not _is_folder(location):
        found = list(_expand(ImageFile("", location)))
        nothing = "no image in this tar"
    elif isinstance(location, str) and _suffix(location) != ".txt":
        found = [image for listed in _walk_url(location) for image in _expand(listed)]
    elif isinstance(location, Path) and _is_folder(location):
        found = [image for listed in _walk(location) for image in _expand(listed)]
    else:
        found = [image for listed in _read_list(location) for image in _expand(listed)]
        nothing = "the list is empty; write one image path per line"
        names_are_files = False
    if not found:
        raise InputError(f"{images}: {nothing}")
    by_key = {image.key: image for image in found}
    if names_are_files and len(by_key) < len(found):
        twice = next(key for key, count in Counter(image.key for image in found).items() if count > 1)
        raise InputError(f"{images}: two names are {twice!r} in UTF-8 with forward slashes; rename one of the files")
    return [by_key[key] for key in sorted(by_key)]


def _suffix(location: Path | str) -> str:
    return PurePosixPath(location).suffix.lower()


def _expand(image: ImageFile) -> Iterator[ImageFile]:
    """`image` itself, or the images inside it if it is a tar; InputError for a damaged tar without a key."""
    refuse_compressed(image.path)
    if image.problem or _suffix(image.path) != TAR_SUFFIX:
        yield image
        return
    try:
        members = list_members(image.path)
    except ImageError as exc:
        if not image.key:
            raise InputError(f"{image.path}: {exc}") from exc
        yield replace(image, problem=str(exc))
        return
    for member in members:
        name = PurePosixPath(member.name)
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and name.suffix.lower() in IMAGE_SUFFIXES:
            key = image_key(f"{image.key}/{member.name}".lstrip("/"))
            yield ImageFile(key, image.path, member.offset, member.size, member.modified_ns)


def walk_folder(folder: Path) -> Iterator[tuple[os.DirEntry[str], OSError | None]]:
    """The files in and below `folder` that are not hidden, each folder by name; what cannot be listed with its error.

    A link back to a folder above itself is not followed. Raises OSError if `folder` itself cannot be listed.
    """
    identity, entries = _list_folder(str(folder))
    return _walk_entries(entries, (identity,))


def _walk_entries(
    entries: list[os.DirEntry[str]], ancestors: tuple[tuple[int, int], ...]
) -> Iterator[tuple[os.DirEntry[str], OSError | None]]:
    for entry in entries:
        if not _is_folder(entry):
            yield entry, None
            continue
        try:
            identity, below = _list_folder(entry.path)
        except OSError as exc:
            yield entry, exc
            continue
        if identity not in ancestors:
            yield from _walk_entries(below, (*ancestors, identity))


def _list_folder(folder: str) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """Device and inode of `folder`, and what is in it by name, hidden entries left out."""
    status = Path(folder).stat()
    with os.scandir(folder) as scanned:
        entries = [entry for entry in scanned if not entry.name.startswith(".")]
    return (status.st_dev, status.st_ino), sorted(entries, key=lambda entry: entry.name)


def _walk(root: Path) -> Iterator[ImageFile]:
    """Images and tars in and below `root`, and folders that cannot be listed."""
    try:
        walked = walk_folder(root)
    except OSError as exc:
        raise InputError(f"{root}: cannot list this folder ({exc.strerror}); make it readable") from exc
    for entry, error in walked:
        path = Path(entry.path)
        if error:
            reason = (error.strerror or str(error)).lower()
            yield ImageFile(_key_below(root, path), path, problem=f"a folder that cannot be listed ({reason})")
        elif is_compressed_tar(path):
            _logger.warning("%s: a compressed tar, left out; unpack it, or make it a plain .tar", path)
        elif path.suffix.lower() in (*IMAGE_SUFFIXES, TAR_SUFFIX) or (not path.suffix and has_image_header(path)):
            yield ImageFile(_key_below(root, path), path)


def _key_below(root: Path, path: Path) -> str:
    return image_key(os.path.relpath(path, root))


def _walk_url(url: str) -> Iterator[ImageFile]:
    """Images and tars in and below the remote folder `url`."""
    filesystem, root = open_filesystem(url.rstrip("/"))
    try:
        listed = filesystem.find(root, detail=True)
    except Exception as exc:  # each filesystem raises its own errors
        raise InputError(f"{url}: cannot be listed ({' '.join(str(exc).split())[:150]})") from exc
    for path, details in listed.items():
        name = posixpath.relpath(path, root)
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and PurePosixPath(name).suffix.lower() in (*IMAGE_SUFFIXES, TAR_SUFFIX):
            full = filesystem.unstrip_protocol(path)
            yield ImageFile(image_key(name), full, None, details.get("size"), _modified_ns(details))


def _modified_ns(details: dict[str, object]) -> int:
    """The time of a file's last change in nanoseconds, under any of the names that servers use; 0 if missing."""
    for name in ("LastModified", "mtime", "updated", "last_modified", "created"):
        value = details.get(name)
        if isinstance(value, int | float):
            return int(value * 1_000_000_000)
        if value is not None and hasattr(value, "timestamp"):
            return int(value.timestamp() * 1_000_000_000)
    return 0


def _is_folder(entry: Path | str | os.DirEntry[str]) -> bool:
    if isinstance(entry, str):
        return False
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without access: treated as an unreadable file
        return False


def _is_listed_image(location: Path | str, name: str) -> bool:
    """Whether `name`, as a whole line of the list `location`, is a file that is there, or a URL."""
    if is_url(name) or isinstance(location, str):
        return is_url(name) and not any(map(str.isspace, name))
    try:
        return (location.parent / name.replace("\\", "/")).exists()
    except (OSError, ValueError):  # a name that is too long
        return False


def _read_list(location: Path | str) -> Iterator[ImageFile]:
    """The images that the lines of a list name."""
    expected = "expected a folder of images, a .tar, or a UTF-8 text file with one image path per line"
    if isinstance(location, Path) and _suffix(location) in IMAGE_SUFFIXES and has_image_header(location):
        raise InputError(f"{location}: one image; {expected}")
    try:
        data = read_url(location) if isinstance(location, str) else location.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, ImageError, UnicodeDecodeError) as exc:
        reason = "not UTF-8 text" if isinstance(exc, UnicodeDecodeError) else getattr(exc, "strerror", None) or exc
        raise InputError(f"{location}: {reason}; {expected}") from exc
    if "\0" in text:
        raise InputError(f"{location}: not text; {expected}")
    names = [line.strip() for line in text.split("\n")]
    if found := find_misread(names, functools.partial(_is_listed_image, location)):
        raise InputError(f"{location}: {found}")
    for name in filter(None, names):
        if is_url(name):
            yield ImageFile(name, name)
        elif isinstance(location, str):
            yield ImageFile(image_key(name), join_url(location, image_key(name)))
        else:
            yield ImageFile(image_key(name), location.parent / name.replace("\\", "/"))
