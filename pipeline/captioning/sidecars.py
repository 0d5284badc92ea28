"""A text file beside each image with its caption, as in training sets: photo.jpg, photo.txt.

Without `overwrite`, only files that an earlier run into the same table wrote, and that are unchanged since, are
replaced. The files written are recorded beside the table: one line per file, the first digits of the SHA-256 of name
and content.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captionmill.data.captions.journal import made_dir
from captionmill.data.captions.table import CaptionRow, read_captions
from captionmill.data.errors import InputError
from captionmill.data.files import partial_path_of
from captionmill.data.images.find import find_images
from captionmill.data.images.formats.kinds import ALL_IMAGE_SUFFIXES, has_read_suffix
from captionmill.data.images.read import ImageFile

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
    captioned = (row.path for row in read_captions(table) if row.status == "ok")
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
        or, without `overwrite`, a sidecar exists that no run into `table` wrote.
        """
        if not is_sidecar_suffix(suffix):
            raise InputError(f"`sidecar` {suffix}: must be the suffix of a text file, such as .txt")
        self._record_path = made_dir(table) / "sidecars"
        self._known = self._read_known()
        self._paths: dict[str, Path] = {}
        self._count = len(found)
        owners: dict[Path, str] = {}
        reserved = {os.path.realpath(path) for path in (table, *others)}
        for image in sorted(found, key=lambda image: not has_read_suffix(image.key)):
            path = image_path_of(image, "`sidecar`").with_suffix(suffix)
            if image.problem:  # it gets no sidecar, and a file of that name may be another image's
                continue
            is_taken = path in owners or (path.exists() and self._hash(image.key, path.read_bytes()) not in self._known)
            if is_taken and not has_read_suffix(image.key):  # a camera's photo.cr2 beside its photo.jpg
                continue
            self._paths[image.key] = path
            if path in owners:
                raise InputError(f"`sidecar`: {owners[path]} and {image.key} would share {path}; rename one of them")
            if os.path.realpath(path) in reserved:
                raise InputError(f"`sidecar`: {path} is another file of this command; choose another suffix")
            if is_taken and not overwrite:
                raise InputError(
                    f"{path}: exists already and was not written by a run into {table}, or was changed since; "
                    "move it away, or pass `overwrite` to replace all such files"
                )
            owners[path] = image.key

    def write(self, rows: Iterable[CaptionRow], *, progress: "Progress") -> int:
        """Write the caption of each row that has one; the number of files that were new or changed."""
        written = 0
        with self._record_path.open("ab") as record:
            for done, row in enumerate(rows, 1):
                path, content = self._paths.get(row.path), f"{row.caption}\n".encode()
                if path and row.status == "ok" and not (path.exists() and path.read_bytes() == content):
                    record.write(b"\n" + self._hash(row.path, content))
                    record.flush()  # first, so that an interrupted run leaves no file without a record
                    partial_path = partial_path_of(path)
                    partial_path.write_bytes(content)
                    partial_path.replace(path)
                    written += 1
                progress("sidecars", done, self._count)
        return written

    def _read_known(self) -> set[bytes]:
        return set(self._record_path.read_bytes().split()) if self._record_path.exists() else set()

    @staticmethod
    def _hash(key: str, content: bytes) -> bytes:
        return hashlib.sha256(key.encode() + b"\0" + content).hexdigest()[:_HASH_DIGITS].encode()
