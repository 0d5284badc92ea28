"""Writes captions into image files: into copies, or in place if the user chooses that.

A description that an earlier run into the same table wrote and a person changed since is that person's caption.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from captionmill.data.errors import ImageError, InputError
from captionmill.data.files import replace_atomically
from captionmill.data.images.description import (
    DescriptionState,
    check_description,
    read_descriptions,
    require_metadata_library,
    write_description,
)
from captionmill.data.images.read import ImageFile
from captionmill.data.progress import Progress
from captionmill.data.regular import require_inside
from captionmill.data.tables.review import Review
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.wording import Wording
from captionmill.data.tables.written import WrittenTexts
from captionmill.pipeline.captioning.sidecars import captions_of, image_path_of


@dataclass(frozen=True)
class EmbedSummary:
    """The result for the images that have a caption."""

    embedded: int
    """Images that contain their caption now."""
    described: tuple[str, ...]
    """Keys of images that keep a description written by another program."""
    unsupported: tuple[str, ...]
    """Keys of images that are not copied: their format has no description, their metadata is damaged, or they are
    read-only and written in place."""


class Embedding:
    """The destination of each image with its caption."""

    def __init__(
        self,
        images: object,
        found: Sequence[ImageFile],
        copies: Path | None,
        table: Path,
        *,
        wording: Wording,
        overwrite: bool,
    ) -> None:
        """Into the folder `copies`, or, if that is None, into the images themselves: the captions of `table` in
        `wording`. `overwrite` replaces descriptions that another program wrote.

        Raises InputError if the library is missing, an image is not a local file, the copies would be among the images,
        two images would have the same copy, or a link in the folder of images leads to an image outside it, which would
        be changed there; OSError if a copy would be outside `copies`.
        """
        require_metadata_library()
        self._sources = {image.key: image_path_of(image, "`embed_metadata`") for image in found}
        self._wording, self._overwrite = wording, overwrite
        self._targets = {key: _real_path(path) for key, path in self._sources.items()}
        folder = images.resolve() if isinstance(images, Path) and images.is_dir() else None
        if copies is None and folder is not None:
            for key, target in self._targets.items():
                if not target.is_relative_to(folder):
                    raise InputError(
                        f"{images}: {key} is a link to {target}, outside this folder, which would be changed there; "
                        "name the folder with the image itself, or write copies: `copies`"
                    )
        if copies is not None:
            if folder is not None and copies.resolve().is_relative_to(folder):
                raise InputError(
                    f"{copies}: copies among the images would be captioned too; name another folder: `copies`"
                )
            self._targets = {key: copies / _below(key) for key in self._sources}
            require_inside(copies, self._targets.values())
            if len(set(self._targets.values())) < len(found):
                raise InputError(
                    f"{copies}: two images would have the same copy, since their names differ only in .. or /"
                )
        self._written = WrittenTexts(table, "descriptions")
        self._seen: dict[str, set[str]] = {}
        """The descriptions that are corrections, and with `overwrite` those of other tables."""
        self._before = {} if self._written.is_begun else captions_of(table)
        """The captions that a version without that record wrote."""
        self.corrections = [Review(key, "corrected", caption) for key, caption in self._find_corrections()]
        """What a person wrote into images since their descriptions were written."""

    def _find_corrections(self) -> Iterator[tuple[str, str]]:
        for key, target in self._targets.items():
            if not self._written.has_any(key) or not target.is_file() or self._written.has(key, _change_stamp(target)):
                continue
            changed = [text for text in read_descriptions(target) if not self._written.has(key, text.encode())]
            by_person = [text for text in changed if not self._written.is_of_another_table(target, text.encode())]
            self._seen[key] = set(changed if self._overwrite else by_person)
            for text in by_person:
                if caption := self._wording.caption_in(text):
                    yield key, caption

    def write(self, rows: Iterable[CaptionRow], *, progress: Progress) -> EmbedSummary:
        """Put the caption of each row into its image; a copy that is up to date stays as it is."""
        embedded = 0
        described: list[str] = []
        unsupported: list[str] = []
        with self._written.adding():
            for done, row in enumerate(rows, 1):
                if row.is_captioned:
                    try:
                        state = self._write_one(row.path, self._wording.text(row.caption))
                    except ImageError:
                        state = "unsupported"
                    embedded += state == "same"
                    described += [row.path] * (state == "described")
                    unsupported += [row.path] * (state == "unsupported")
                progress("embed", done, len(self._sources))
        return EmbedSummary(embedded, tuple(described), tuple(unsupported))

    def _write_one(self, key: str, text: str) -> DescriptionState:
        """Write the text; the state of the image's description after that."""
        source, target = self._sources[key], self._targets[key]
        if self._is_anothers(key, text):
            return "described"
        state = check_description(source, text, overwrite=self._overwrite)
        is_copy = target != _real_path(source)
        if state == "unsupported" or (state == "described" and not is_copy):
            return state
        if state != "described":
            self._written.add(key, text.encode(), target)
        if state == "same" and not is_copy:
            is_done = True
        else:
            is_done = is_copy and _is_copy_of(target, source) and check_description(target, text) == "same"
        if not is_done:
            if not is_copy and not os.access(target, os.W_OK):
                raise ImageError("it is read-only")
            with replace_atomically(target) as partial_path:
                shutil.copyfile(source, partial_path)
                if state == "missing":
                    write_description(partial_path, text)
                # read-only images end as read-only
                (shutil.copystat if is_copy else shutil.copymode)(source, partial_path)
        self._written.add(key, _change_stamp(target))
        return "same" if is_done or state == "missing" else state

    def _is_anothers(self, key: str, text: str) -> bool:
        """Whether the image has a description that no run into the table wrote and that is no correction.

        It was written while the captions were made, or by a run into another table, which `overwrite` replaces.
        """
        target = self._targets[key]
        if not target.is_file() or self._written.has(key, _change_stamp(target)):
            return False
        if self._overwrite and not self._written.has_any(key):
            return False
        known = {text, *self._seen.get(key, ()), self._before.get(key)}
        return any(one not in known and not self._written.has(key, one.encode()) for one in read_descriptions(target))


def _is_copy_of(target: Path, source: Path) -> bool:
    """Whether `target` is a copy of the current `source`: a copy keeps the modification time of its original."""
    return target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns


def _change_stamp(path: Path) -> bytes:
    """What differs after any change of the file: its size and the times of the change, of which programs set one."""
    status = path.stat()
    return f"{status.st_ctime_ns} {status.st_mtime_ns} {status.st_size}".encode()


def _real_path(path: Path) -> Path:
    """The file behind all links; for a link to itself the link, where `Path.resolve` would fail."""
    return Path(os.path.realpath(path))


def _below(key: str) -> PurePosixPath:
    """The path of a copy below its folder: a.jpg for ../a.jpg and /a.jpg of a list."""
    return PurePosixPath(*(part for part in PurePosixPath(key).parts if part not in ("..", "/")))
