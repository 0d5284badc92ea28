"""`metadata.jsonl`, by which Hugging Face's imagefolder knows the captions of a folder of images.

One object per image, `file_name` relative to the file, and `text`. A text that an earlier run into the same table wrote
and a person changed since is that person's caption.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from captionmill.data.csv_tables import encoding_of
from captionmill.data.errors import InputError
from captionmill.data.files import digest_of_file, replace_atomically, require_other_file
from captionmill.data.foreign import parse_json
from captionmill.data.images.keys import escape_name
from captionmill.data.images.read import ImageFile
from captionmill.data.regular import read_bytes
from captionmill.data.tables.review import Review
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.wording import Wording
from captionmill.data.tables.written import WrittenTexts
from captionmill.pipeline.captioning.sidecars import image_path_of

if TYPE_CHECKING:
    from captionmill.data.progress import Progress

NAME = "metadata.jsonl"


class MetadataLines:
    """The file for one table."""

    def __init__(
        self,
        found: Sequence[ImageFile],
        path: Path,
        table: Path,
        *,
        wording: Wording,
        others: Iterable[Path],
        overwrite: bool,
    ) -> None:
        """For the images `found`, at `path`.

        Raises InputError if it has another name, an image is not a local file in or below its folder, it is one of the
        `others`, or, without `overwrite`, it is there and no run into `table` wrote it.
        """
        if path.name != NAME:
            raise InputError(f"{path}: must be called {NAME}, the name by which imagefolder finds it: `metadata_jsonl`")
        require_other_file(path, table, *others)
        self._path, self._wording = path, wording
        self._written = WrittenTexts(table, "metadata")
        folder = _plain_path(path.parent)
        self._names = {image.key: _name_in(folder, image) for image in found if not image.problem}
        self._count = len(found)
        self._digest = digest_of_file(path)
        self.corrections: list[Review] = []
        """What a person wrote into the file since it was written."""
        is_known = self._digest == "" or self._written.has("", self._digest.encode())
        if not is_known and not self._read_corrections() and not overwrite:
            raise InputError(
                f"{path}: exists already and was not written by a run into {table}, or holds more than file names and "
                "texts; move it away, or pass `overwrite` to replace it"
            )

    def _read_corrections(self) -> bool:
        """Take the texts that a person changed; whether the file holds nothing else that is new."""
        keys = {name: key for key, name in self._names.items()}
        try:
            content = read_bytes(self._path)
            lines = content.decode(encoding_of(content)).split("\n")
        except ValueError:  # not text
            return False
        is_nothing_else = True
        for line in filter(str.strip, lines):
            match _object_in(line):
                case {"file_name": str(name), "text": str(text), **others} if self._written.has_any(name):
                    is_anothers = self._written.is_of_another_table(self._path, text.encode(), name)
                    is_known = self._written.has(name, text.encode())
                    is_nothing_else = is_nothing_else and not others and (is_known or not is_anothers)
                    caption = self._wording.caption_in(text)
                    if name in keys and caption and not (is_known or is_anothers):
                        self.corrections.append(Review(keys[name], "corrected", caption))
                case _:
                    is_nothing_else = False
        return is_nothing_else

    def write(self, rows: Iterable[CaptionRow], *, progress: "Progress") -> bool:
        """Write a line for each row that has a caption; whether the file was new or changed."""
        digest = hashlib.sha256()
        if digest_of_file(self._path) != self._digest:
            raise InputError(f"{self._path}: was changed while the captions were made; run again")
        with replace_atomically(self._path) as partial_path, self._written.adding():
            with partial_path.open("wb") as file:
                for done, row in enumerate(rows, 1):
                    if row.is_captioned and row.path in self._names:
                        name, text = self._names[row.path], self._wording.text(row.caption)
                        line = json.dumps({"file_name": name, "text": text}, ensure_ascii=False).encode() + b"\n"
                        self._written.add(name, text.encode(), self._path, name)
                        digest.update(line)
                        file.write(line)
                    progress("metadata", done, self._count)
            self._written.add("", digest.hexdigest().encode())
        return digest.hexdigest() != self._digest


def _object_in(line: str) -> object:
    """The value of the JSON in `line`; None if it is not JSON."""
    try:
        return parse_json(line)
    except ValueError:
        return None


def _name_in(folder: Path, image: ImageFile) -> str:
    """The path of `image` relative to `folder`, with forward slashes."""
    path = _plain_path(image_path_of(image, "`metadata_jsonl`"))
    if not path.is_relative_to(folder):
        raise InputError(f"`metadata_jsonl`: {path} is not in {folder} or below it; put the file above all images")
    return escape_name(PurePath(path.relative_to(folder)).as_posix())


def _plain_path(path: Path) -> Path:
    """`path` from the root, without `..`; links stay."""
    return Path(os.path.normpath(path.absolute()))
