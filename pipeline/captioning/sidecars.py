"""A text file beside each image with its caption, as in training sets: photo.jpg, photo.txt.

A file that an earlier run into the same table wrote and a person changed since is that person's caption of the image.
Without `overwrite`, a file that no such run wrote is not replaced. What was written is recorded beside the table: one
line per file, the first digits of the SHA-256 of name and content, and one of the name.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from captionmill.data.errors import InputError
from captionmill.data.files import partial_path_of
from captionmill.data.images.find import find_images
from captionmill.data.images.formats.kinds import ALL_IMAGE_SUFFIXES, has_read_suffix
from captionmill.data.images.read import ImageFile
from captionmill.data.tables.formats import is_caption_table, read_captions
from captionmill.data.tables.journal import made_dir
from captionmill.data.tables.review import Review
from captionmill.data.tables.rows import CaptionRow

if TYPE_CHECKING:
    from captionmill.data.progress import Progress

_HASH_DIGITS = 16


def image_path_of(image: ImageFile, option: str) -> Path:
    """The file of `image`; InputError if it is not a file on this machine."""
    if isinstance(image.path, str) or image.offset is not None:
        raise InputError(f"{option} needs images that are files here; {image.key} is in a tar or behind a URL")
    return image.path


def is_sidecar_suffix(suffix: str) -> bool:
    """Whether files with this suffix may be beside images: it begins with a dot and is not the suffix of an image."""
    return bool(re.fullmatch(r"\.\w[\w.-]*", suffix)) and suffix.lower() not in (*ALL_IMAGE_SUFFIXES, ".tar")


def count_missing(images: Path | str, suffix: str, table: Path) -> int:
    """The number of `images` that have a caption in `table` but no sidecar with the suffix `suffix`."""
    paths = {image.key: image_path_of(image, "`sidecar`").with_suffix(suffix) for image in find_images(images)}
    captioned = (row.path for row in read_captions(table) if row.is_captioned)
    return sum(key in paths and not paths[key].exists() for key in captioned)


class Sidecars:
    """The text files beside the images."""

    def __init__(
        self,
        found: Sequence[ImageFile],
        suffix: str,
        table: Path,
        *,
        others: Iterable[Path],
        overwrite: bool,
    ) -> None:
        """For the images `found`, with the suffix `suffix` and the captions of `table`; `others` are never overwritten.

        Raises InputError if the suffix cannot be used, an image is not a local file, two images would share a sidecar,
        or, without `overwrite`, a sidecar exists that no run into `table` wrote or that is no text.
        """
        if not is_sidecar_suffix(suffix):
            raise InputError(f"`sidecar` {suffix}: must be the suffix of a text file, such as .txt")
        self._table = table
        self._record_path = made_dir(table) / "sidecars"
        self._known = self._read_known()
        self._paths: dict[str, Path] = {}
        self.corrections: list[Review] = []
        """What a person wrote into sidecars since they were written."""
        self._count = len(found)
        owners: dict[Path, str] = {}
        reserved = {os.path.realpath(path) for path in (table, *others)}
        for image in sorted(found, key=lambda image: not has_read_suffix(image.key)):
            path = image_path_of(image, "`sidecar`").with_suffix(suffix)
            if image.problem:  # it gets no sidecar, and a file of that name may be another image's
                continue
            correction = self._correction(image.key, path)
            is_foreign = correction is None and path.exists() and not self._is_known(image.key, path.read_bytes())
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
            if correction is not None:
                self.corrections.append(correction)

    def write(self, rows: Iterable[CaptionRow], *, progress: "Progress") -> int:
        """Write the caption of each row that has one; the number of files that were new or changed."""
        written = 0
        with self._record_path.open("ab") as record:
            for done, row in enumerate(rows, 1):
                path, content = self._paths.get(row.path), f"{row.caption}\n".encode()
                if path and row.is_captioned:
                    written += self._write_one(row.path, path, content, record)
                progress("sidecars", done, self._count)
        return written

    def _write_one(self, key: str, path: Path, content: bytes, record: IO[bytes]) -> bool:
        """Write the sidecar of one image; whether it was new or changed."""
        is_there = path.exists() and path.read_bytes() == content
        if not (is_there and self._is_known(key, content)):
            record.write(b"\n".join((b"", self._hash(key), self._hash(key, content))))
            record.flush()  # first, so that an interrupted run leaves no file without a record
        if is_there:
            return False
        partial_path = partial_path_of(path)
        partial_path.write_bytes(content)
        partial_path.replace(path)
        return True

    def _correction(self, key: str, path: Path) -> Review | None:
        """What a person wrote into the sidecar of `key`; None if it is as it was written, foreign, or not a text."""
        if not path.exists() or self._is_known(key, content := path.read_bytes()):
            return None
        try:
            caption = " ".join(content.decode("utf-8-sig").split())
        except UnicodeDecodeError:
            return None
        is_ours = self._hash(key) in self._known or self._is_known(key, f"{self._captions.get(key)}\n".encode())
        return Review(key, "corrected", caption) if is_ours and caption else None

    def _is_known(self, key: str, content: bytes) -> bool:
        return self._hash(key, content) in self._known

    @functools.cached_property
    def _captions(self) -> dict[str, str]:
        """The captions of the table as it is."""
        is_there = is_caption_table(self._table)
        return {row.path: row.caption for row in read_captions(self._table)} if is_there else {}

    def _read_known(self) -> set[bytes]:
        return set(self._record_path.read_bytes().split()) if self._record_path.exists() else set()

    @staticmethod
    def _hash(key: str, content: bytes = b"") -> bytes:
        return hashlib.sha256(key.encode() + b"\0" + content).hexdigest()[:_HASH_DIGITS].encode()
