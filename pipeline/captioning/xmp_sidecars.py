"""An XMP packet beside each image, photo.jpg.xmp, which darktable, digiKam and immich read.

A packet of another program gets the caption as its description if it has none; nothing else in it changes. A
description that somebody else wrote stays. One that a run into the same table wrote and a person changed since is that
person's caption.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captionmill.data.errors import InputError
from captionmill.data.files import write_bytes
from captionmill.data.images.read import ImageFile
from captionmill.data.images.xmp import new_packet, packed_text, read_packet, with_description
from captionmill.data.regular import read_bytes
from captionmill.data.tables.review import Review
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.wording import Wording
from captionmill.data.tables.written import WrittenTexts
from captionmill.pipeline.captioning.sidecars import sidecar_path

if TYPE_CHECKING:
    from captionmill.data.progress import Progress


class XmpSidecars:
    """The packets beside the images."""

    def __init__(
        self, found: Sequence[ImageFile], suffix: str, table: Path, *, wording: Wording, others: Iterable[Path]
    ) -> None:
        """As for `Sidecars`, but nothing is ever replaced that no run into `table` wrote.

        Raises InputError if an image is not a local file, or a packet would be one of the `others`.
        """
        self._wording = wording
        self._written = WrittenTexts(table, "sidecars")
        self._paths = {image.key: sidecar_path(image, suffix) for image in found if not image.problem}
        self._count = len(found)
        self._seen: dict[str, str] = {}
        """The descriptions that are corrections."""
        self.corrections: list[Review] = []
        """What a person wrote into packets since they were written."""
        self.kept: list[str] = []
        """Keys of images whose packet keeps what is in it."""
        reserved = {os.path.realpath(path) for path in (table, *others)}
        for key, path in self._paths.items():
            if os.path.realpath(path) in reserved:
                raise InputError(f"`sidecar`: {path} is another file of this command; choose another suffix")
            if self._written.has_any(key) and path.is_file() and (packet := read_packet(read_bytes(path))):
                text = packet.description
                if packet.is_ours and text is not None and self._is_by_a_person(key, path, text.encode()):
                    self._seen[key] = text
                    if caption := wording.caption_in(text):
                        self.corrections.append(Review(key, "corrected", caption))

    def _is_by_a_person(self, key: str, path: Path, text: bytes) -> bool:
        """Whether no run wrote this description."""
        return not (self._written.has(key, text) or self._written.is_of_another_table(path, text))

    def write(self, rows: Iterable[CaptionRow], *, progress: "Progress") -> int:
        """Write the caption of each row that has one; the number of packets that were new or changed."""
        written = 0
        with self._written.adding():
            for done, row in enumerate(rows, 1):
                if row.is_captioned and row.path in self._paths:
                    text = packed_text(self._wording.text(row.caption))
                    written += self._write_one(row.path, self._paths[row.path], text)
                progress("sidecars", done, self._count)
        return written

    def _write_one(self, key: str, path: Path, text: str) -> bool:
        """Write the packet of one image; whether it was new or changed."""
        before = read_bytes(path) if path.exists() else None
        content: bytes | None
        if before is None:
            content = new_packet(text)
        else:
            packet = read_packet(before)
            there = packet.description if packet else None
            is_known = there is None or there in (text, self._seen.get(key)) or self._written.has(key, there.encode())
            content = with_description(before, text) if packet and is_known else None
        if content is None:
            self.kept.append(key)
            return False
        self._written.add(key, text.encode(), path)
        if content != before:
            write_bytes(path, content, flushes=False)
        return content != before
