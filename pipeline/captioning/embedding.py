"""Captions into the image files themselves: into copies, or, if the user says so, in place."""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from captionmill.data.captions.table import CaptionRow
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
from captionmill.pipeline.captioning.sidecars import image_path_of


@dataclass(frozen=True)
class EmbedSummary:
    """What became of the images that have a caption."""

    embedded: int
    """Images that hold their caption now."""
    described: tuple[str, ...]
    """Keys of those with a description of somebody else, which stayed."""
    unsupported: tuple[str, ...]
    """Keys of those whose format takes no description, whose metadata is damaged, or, in place, that are read-only;
    they are not copied."""


class Embedding:
    """Where each image with its caption goes."""

    def __init__(self, images: Path | str, found: Sequence[ImageFile], copies: Path | None) -> None:
        """Into the folder `copies`, or, if that is None, into the images themselves.

        Raises InputError if the library is missing, an image is no local file, the copies would lie among the images,
        or two images would have one copy.
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
            raise InputError(f"{copies}: two images would have one copy, since their names differ in .. or / alone")

    def write(self, rows: Iterable[CaptionRow], *, overwrite: bool, progress: Progress = no_progress) -> EmbedSummary:
        """Put the caption of each row into its image; a copy that is up to date stays as it is."""
        embedded = 0
        described: list[str] = []
        unsupported: list[str] = []
        for done, row in enumerate(rows, 1):
            if row.status == "ok":
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
        """Write it; how the image stands to its caption after that."""
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
            (shutil.copystat if is_copy else shutil.copymode)(source, partial_path)  # a read-only one is one at the end
        return "same" if state == "missing" else state


def _is_copy_of(target: Path, source: Path) -> bool:
    """Whether `target` was copied from `source` as it is now: a copy keeps the time of its original."""
    return target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns


def _real_path(path: Path) -> Path:
    """The file behind all links; of a link to itself the link, where `Path.resolve` would fail."""
    return Path(os.path.realpath(path))


def _below(key: str) -> PurePosixPath:
    """The path of a copy below its folder: of a list's ../a.jpg and /a.jpg, a.jpg."""
    return PurePosixPath(*(part for part in PurePosixPath(key).parts if part not in ("..", "/")))
