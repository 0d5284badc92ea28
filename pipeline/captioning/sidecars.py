"""A text file beside each image with its caption, as in training sets: photo.jpg, photo.txt.

A file that an earlier run into the same table wrote and a person changed since is that person's caption of the image.
Without `overwrite`, a file that no such run wrote is not replaced.
"""

import functools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captionmill.data.csv_tables import encoding_of
from captionmill.data.errors import InputError
from captionmill.data.files import write_bytes
from captionmill.data.images.find import find_images
from captionmill.data.images.formats.kinds import ALL_IMAGE_SUFFIXES, has_read_suffix
from captionmill.data.images.read import ImageFile
from captionmill.data.regular import read_bytes
from captionmill.data.tables.formats import is_caption_table, read_captions
from captionmill.data.tables.review import Review
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.wording import Wording
from captionmill.data.tables.written import WrittenTexts

if TYPE_CHECKING:
    from captionmill.data.progress import Progress

XMP_SUFFIX = ".xmp"


def image_path_of(image: ImageFile, option: str) -> Path:
    """The file of `image`; InputError if it is not a file on this machine."""
    if isinstance(image.path, str) or image.offset is not None:
        raise InputError(f"{option} needs images that are files here; {image.key} is in a tar or behind a URL")
    return image.path


def sidecar_path(image: ImageFile, suffix: str) -> Path:
    """The sidecar of `image`: photo.txt for photo.jpg, but photo.jpg.xmp, as photo programs expect; errors as
    `image_path_of`.
    """
    path = image_path_of(image, "`sidecar`")
    return path.with_name(path.name + suffix) if suffix.lower() == XMP_SUFFIX else path.with_suffix(suffix)


def is_sidecar_suffix(suffix: str) -> bool:
    """Whether files with this suffix may be beside images: it begins with a dot and is not the suffix of an image."""
    return bool(re.fullmatch(r"\.\w[\w.-]*", suffix)) and suffix.lower() not in (*ALL_IMAGE_SUFFIXES, ".tar")


def count_missing(images: Path | str, suffix: str, table: Path) -> int:
    """The number of `images` that have a caption in `table` but no sidecar with the suffix `suffix`."""
    paths = {image.key: sidecar_path(image, suffix) for image in find_images(images)}
    captioned = (row.path for row in read_captions(table) if row.is_captioned)
    return sum(key in paths and not paths[key].exists() for key in captioned)


def captions_of(table: Path) -> dict[str, str]:
    """The captions of the table as it is, by key; none if it is not there."""
    return {row.path: row.caption for row in read_captions(table)} if is_caption_table(table) else {}


class Sidecars:
    """The text files beside the images."""

    def __init__(
        self,
        found: Sequence[ImageFile],
        suffix: str,
        table: Path,
        *,
        wording: Wording,
        others: Iterable[Path],
        overwrite: bool,
    ) -> None:
        """For the images `found`, with the suffix `suffix` and the captions of `table` in `wording`.

        `others` are never overwritten. Raises InputError if the suffix cannot be used, an image is not a local file,
        two images would share a sidecar, one that a run wrote is no text any more, or, without `overwrite`, one exists
        that no run into `table` wrote.
        """
        if not is_sidecar_suffix(suffix):
            raise InputError(f"`sidecar` {suffix}: must be the suffix of a text file, such as .txt")
        self._table, self._wording = table, wording
        self._written = WrittenTexts(table, "sidecars")
        self._paths: dict[str, Path] = {}
        self._seen: dict[str, bytes] = {}
        """What is in sidecars that will be replaced, although no run wrote it."""
        self.corrections: list[Review] = []
        """What a person wrote into sidecars since they were written."""
        self.kept: list[str] = []
        """Keys of images whose sidecar was changed while its caption was made; it stays, and the next run reads it."""
        self._keys = {image.key for image in found}
        owners: dict[Path, str] = {}
        reserved = {os.path.realpath(path) for path in (table, *others)}
        for image in sorted(found, key=lambda image: not has_read_suffix(image.key)):
            path = sidecar_path(image, suffix)
            if image.problem:  # it gets no sidecar, and a file of that name may be another image's
                continue
            content = read_bytes(path) if path.exists() else None
            is_new = content is not None and not self._written.has(image.key, content)
            correction = self._correction(image.key, path, content) if content is not None and is_new else None
            is_foreign = is_new and correction is None and not self._is_of_a_renamed(content or b"")
            if (path in owners or is_foreign) and not has_read_suffix(image.key):  # photo.cr2 beside its photo.jpg
                continue
            self._paths[image.key] = path
            if path in owners:
                raise InputError(f"`sidecar`: {owners[path]} and {image.key} would share {path}; rename one of them")
            if os.path.realpath(path) in reserved:
                raise InputError(f"`sidecar`: {path} is another file of this command; choose another suffix")
            if is_foreign and not overwrite:
                raise InputError(
                    f"{path}: exists already and was not written by a run into {table}; "
                    "move it away, or pass `overwrite` to replace all such files"
                )
            owners[path] = image.key
            if content is not None and is_new:
                self._seen[image.key] = content
            if correction:
                self.corrections.append(Review(image.key, "corrected", correction))

    def write(self, rows: Iterable[CaptionRow], *, progress: "Progress") -> int:
        """Write the caption of each row that has one; the number of files that were new or changed."""
        written = 0
        with self._written.adding():
            for done, row in enumerate(rows, 1):
                path = self._paths.get(row.path)
                if path and row.is_captioned:
                    written += self._write_one(row.path, path, f"{self._wording.text(row.caption)}\n".encode())
                progress("sidecars", done, len(self._keys))
        return written

    def _write_one(self, key: str, path: Path, content: bytes) -> bool:
        """Write the sidecar of one image; whether it was new or changed."""
        there = read_bytes(path) if path.exists() else None
        if there not in (None, content, self._seen.get(key)) and not self._written.has(key, there or b""):
            self.kept.append(key)
            return False
        self._written.add(key, content, path)
        if there != content:
            write_bytes(path, content, flushes=False)  # a flush would take most of the time
        return there != content

    def _correction(self, key: str, path: Path, content: bytes) -> str | None:
        """What a person wrote into the sidecar of `key` at `path`, "" if it was emptied; None if it is foreign.

        InputError if it is not a text that can be read.
        """
        if self._written.is_of_another_table(path, content):
            return None
        if not (self._written.has_any(key) or self._written.has(key, f"{self._captions.get(key)}\n".encode())):
            return None
        try:
            return self._wording.caption_in(content.decode(encoding_of(content)))
        except UnicodeDecodeError as exc:
            raise InputError(f"{path}: was changed, and is not UTF-8 text; save it as UTF-8, or delete it") from exc

    def _is_of_a_renamed(self, content: bytes) -> bool:
        """Whether a run wrote `content` for an image that is not there under its key any more."""
        return any(self._written.has(key, content) for key in self._gone)

    @functools.cached_property
    def _gone(self) -> set[str]:
        """The keys of the table whose images are not there."""
        return self._captions.keys() - self._keys

    @functools.cached_property
    def _captions(self) -> dict[str, str]:
        return captions_of(self._table)
