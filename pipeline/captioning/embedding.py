"""Writes captions into image files: into copies, or in place if the user chooses that."""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from captionmill.data.errors import ImageError, InputError
from captionmill.data.files import replace_atomically
from captionmill.data.images.description import (
    DescriptionState,
    check_description,
    require_metadata_library,
    write_description,
)
from captionmill.data.images.read import ImageFile
from captionmill.data.progress import Progress, no_progress
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.captioning.sidecars import image_path_of


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

    def __init__(self, images: Path | str, found: Sequence[ImageFile], copies: Path | None) -> None:
        """Into the folder `copies`, or, if that is None, into the images themselves.

        Raises InputError if the library is missing, an image is not a local file, the copies would be among the images,
        or two images would have the same copy.
        """
        require_metadata_library()
        self._sources = {image.key: image_path_of(image, "`embed_metadata`") for image in found}
        self._targets = {key: _real_path(path) for key, path in self._sources.items()}
        if copies is None:
            return
        if isinstance(images, Path) and images.is_dir() and copies.resolve().is_relative_to(images.resolve()):
            raise InputError(f"{copies}: copies among the images would be captioned too; name another folder: `copies`")
        self._targets = {key: copies / _below(key) for key in self._sources}
        if len(set(self._targets.values())) < len(found):
            raise InputError(f"{copies}: two images would have the same copy, since their names differ only in .. or /")

    def write(self, rows: Iterable[CaptionRow], *, overwrite: bool, progress: Progress = no_progress) -> EmbedSummary:
        """Put the caption of each row into its image; a copy that is up to date stays as it is."""
        embedded = 0
        described: list[str] = []
        unsupported: list[str] = []
        for done, row in enumerate(rows, 1):
            if row.is_captioned:
                try:
                    state = self._write_one(row, overwrite)
                except ImageError:
                    state = "unsupported"
                embedded += state == "same"
                described += [row.path] * (state == "described")
                unsupported += [row.path] * (state == "unsupported")
            progress("embed", done, len(self._sources))
        return EmbedSummary(embedded, tuple(described), tuple(unsupported))

    def _write_one(self, row: CaptionRow, overwrite: bool) -> DescriptionState:
        """Write the caption; the state of the image's description after that."""
        source, target = self._sources[row.path], self._targets[row.path]
        state = check_description(source, row.caption, overwrite=overwrite)
        is_copy = target != _real_path(source)
        if state == "unsupported" or (state != "missing" and not is_copy):
            return state
        if is_copy and _is_copy_of(target, source) and check_description(target, row.caption) == "same":
            return "same"
        if not is_copy and not os.access(target, os.W_OK):
            raise ImageError("it is read-only")
        with replace_atomically(target) as partial_path:
            shutil.copyfile(source, partial_path)
            if state == "missing":
                write_description(partial_path, row.caption)
            (shutil.copystat if is_copy else shutil.copymode)(source, partial_path)  # read-only images end as read-only
        return "same" if state == "missing" else state


def _is_copy_of(target: Path, source: Path) -> bool:
    """Whether `target` is a copy of the current `source`: a copy keeps the modification time of its original."""
    return target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns


def _real_path(path: Path) -> Path:
    """The file behind all links; for a link to itself the link, where `Path.resolve` would fail."""
    return Path(os.path.realpath(path))


def _below(key: str) -> PurePosixPath:
    """The path of a copy below its folder: a.jpg for ../a.jpg and /a.jpg of a list."""
    return PurePosixPath(*(part for part in PurePosixPath(key).parts if part not in ("..", "/")))
