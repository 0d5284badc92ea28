"""Walks over folders, and counts what a search passes over: thumbnails, bins, hidden files, folders met twice."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from captionmill.data.images.formats.kinds import ALL_IMAGE_SUFFIXES

_SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", ".@__thumb", ".snapshot", "@tmp"),
        *("$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx", ".appledouble"),
        *(".thumbnails", ".thumbs", ".spotlight-v100", ".fseventsd", ".documentrevisions-v100", ".temporaryitems"),
    )
)
"""Folders in which file servers and desktops keep thumbnails, deleted files and copies, in lower case."""

Identity = tuple[int, int]
"""Device and inode of a folder."""


@dataclass
class PassedOver:
    """What a search passed over."""

    system: Counter[str] = field(default_factory=Counter)
    """Images in thumbnail folders and bins of file servers and desktops, by the name of the folder."""
    hidden: int = 0
    """Images whose name, in a tar or behind a URL also whose folder's name, begins with a dot."""
    hidden_folders: int = 0
    """Other folders whose name begins with a dot; they are not searched, so their images are not counted."""
    links: int = 0
    """Links to folders that are searched under another name or that contain the searched folder."""
    compressed: int = 0
    """Compressed tars."""
    nested: int = 0
    """Tars inside a tar."""
    replaced: int = 0
    """Images in a tar behind which it has another member of the same name."""
    outside: int = 0
    """Images in a tar that would be unpacked outside of it, as `../a.jpg` is."""

    def passes(self, parts: Sequence[str]) -> bool:
        """Whether a search passes over the image at the relative path of these `parts`; it is counted then."""
        for part in parts[:-1]:
            if is_system_folder(part):
                self.system[part] += 1
                return True
        if ".." in parts:
            self.outside += 1
            return True
        if any(part.startswith(".") for part in parts):
            self.hidden += 1
            return True
        return False

    def describe(self) -> str:
        """What was left out, in words; empty if nothing was."""
        names = ", ".join(sorted(self.system))
        counts = (
            (self.system.total(), "image", f" in thumbnail folders and bins ({names})"),
            (self.hidden, "hidden image", ""),
            (self.hidden_folders, "hidden folder", ""),
            (self.links, "link", " to a folder that is searched already or contains this one"),
            (self.compressed, "compressed tar", ""),
            (self.nested, "tar", " inside a tar, which must be unpacked first"),
            (self.replaced, "image", " in a tar that a later member of the same name replaces"),
            (self.outside, "image", " in a tar whose path leads out of it (..)"),
        )
        return ", ".join(
            f"{count:,} {noun}{'' if count == 1 else 's'}{where}" for count, noun, where in counts if count
        )


def is_system_folder(name: str) -> bool:
    """Whether a file server or a desktop keeps thumbnails, deleted files or copies in folders with this name."""
    lower = name.lower()
    return lower in _SYSTEM_FOLDERS or lower.startswith(".trash")


def suffix_of(name: str) -> str:
    """The suffix of a file name, in lower case; much faster than a path's."""
    place = name.rfind(".")
    return name[place:].lower() if 0 < place < len(name) - 1 else ""


def walk_folder(folder: Path, left_out: PassedOver | None = None) -> Iterator[tuple[os.DirEntry[str], OSError | None]]:
    """The files in and below `folder`, each folder by name; what cannot be listed with its error.

    Hidden files and folders, and those of `is_system_folder`, are left out, and counted in `left_out`. Each folder is
    walked once: under its own name if that is below `folder`, and else, after all others, under the first link to it.
    Links to `folder` itself or to a folder that contains it are not followed. Raises OSError if `folder` itself cannot
    be listed.
    """
    return _FolderWalk(folder, PassedOver() if left_out is None else left_out, counts=left_out is not None).files()


class _FolderWalk:
    def __init__(self, folder: Path, left_out: PassedOver, *, counts: bool) -> None:
        self._left_out, self._counts = left_out, counts
        self._links: list[os.DirEntry[str]] = []
        self._walked = {_identity(str(folder))}
        for parent in folder.resolve().parents:
            with suppress(OSError):
                self._walked.add(_identity(str(parent)))
        self._top = self._list(str(folder))

    def files(self) -> Iterator[tuple[os.DirEntry[str], OSError | None]]:
        yield from self._below(self._top)
        for link in self._links:  # grows, as linked folders hold links too
            yield from self._below([link], follows=True)

    def _below(
        self, entries: list[os.DirEntry[str]], *, follows: bool = False
    ) -> Iterator[tuple[os.DirEntry[str], OSError | None]]:
        stack = [iter(entries)]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
            elif not _leads_to_folder(entry):
                yield entry, None
            elif entry.is_symlink() and not follows:
                self._links.append(entry)
            else:
                follows = False
                try:
                    identity = _identity(entry.path)
                    if identity in self._walked:
                        self._left_out.links += 1
                        continue
                    self._walked.add(identity)
                    stack.append(iter(self._list(entry.path)))
                except OSError as exc:
                    yield entry, exc

    def _list(self, folder: str) -> list[os.DirEntry[str]]:
        """What is in `folder` and not left out, by name."""
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not self._leaves_out(entry)), key=lambda entry: entry.name)

    def _leaves_out(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is hidden or a folder of a system; it is counted then."""
        is_hidden, is_system = entry.name.startswith("."), is_system_folder(entry.name)
        if not (is_hidden or is_system):
            return False
        if not _leads_to_folder(entry):
            self._left_out.hidden += is_hidden and suffix_of(entry.name) in ALL_IMAGE_SUFFIXES
            return is_hidden
        if not is_system:
            self._left_out.hidden_folders += 1
        elif self._counts and (count := _count_images(entry.path)):
            self._left_out.system[entry.name] += count
        return True


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without access: treated as an unreadable file
        return False


def _identity(folder: str) -> Identity:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _count_images(folder: str) -> int:
    """The number of files in and below `folder` with the suffix of an image."""
    return sum(suffix_of(name) in ALL_IMAGE_SUFFIXES for _, _, names in os.walk(folder) for name in names)
