"""The chunks of a PNG: those of the pixels must be whole; a damaged or huge text or colour profile is not needed.

Pillow does not look at the checksums of the pixels, and refuses a file for any other (PNG specification, 5.5 and 11).
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from captionmill.data.errors import ImageError
from captionmill.data.images.formats.holes import stream_length
from captionmill.data.images.formats.orientation import RAW_EXIF_KEYS, XMP_KEYS

_SIGNATURE_BYTES = 8
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of interlacing: the first column and row, and the steps (PNG specification, 8.2)."""
_MOST_BYTES = 4_000_000  # decompressed at once, and of EXIF or XMP in all


def require_whole_pixels(data: bytes) -> None:
    """Raise ImageError if a checksum of the pixels is wrong: that of a chunk, or of all of them if the last is cut."""
    view = memoryview(data)
    chunks: list[memoryview] = []
    for kind, start, end in _png_chunks(data):
        if kind == b"IDAT":
            chunks.append(view[start + 8 : end - 4])
            is_whole = (
                zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(view[end - 4 : end])
                if end <= len(data)
                else stream_length(chunks) is not None
            )
            if not is_whole:
                raise ImageError("truncated or damaged image (wrong checksum of the pixels)")


def require_all_rows(data: bytes, last_rows: npt.NDArray[np.uint8]) -> None:
    """Raise ImageError if the pixels of a PNG end before the last row, which Pillow leaves black.

    `last_rows` are the last two rows as Pillow decoded them: of an interlaced PNG, the second to last may come last.
    """
    if last_rows.any():
        return
    width, height, depth, color_type, *_, interlace = struct.unpack(">IIBBBBB", data[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    passes = _PASSES if interlace else [(0, 0, 1, 1)]
    needed = 0
    for left, top, step_x, step_y in passes:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        needed += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    length = stream_length([data[start + 8 : end - 4] for kind, start, end in _png_chunks(data) if kind == b"IDAT"])
    if length is not None and length < needed:
        raise ImageError("truncated or damaged image (rows are missing)")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk up to the end mark, and where it begins and ends, with its length and its checksum."""
    start, kind = _SIGNATURE_BYTES, b""
    while kind != b"IEND" and start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        kind = data[start + 4 : start + 8]
        yield kind, start, end
        start = end


def without_metadata(data: bytes) -> tuple[bytes, dict[str | tuple[int, int], Any]] | None:
    """A PNG without the chunks that its pixels do not need, and its EXIF and XMP texts, as in the `info` of Pillow.

    Damaged chunks that are needed, EXIF and XMP among them, stay as they are. None if the chunks cannot be followed, or
    if all are needed. Nothing that is left out is decompressed, so that a bomb of text costs nothing.
    """
    kept = [data[:_SIGNATURE_BYTES]]
    texts: dict[str | tuple[int, int], Any] = {}
    end = 0
    for kind, start, end in _png_chunks(data):
        if not kind.isalpha():
            return None
        is_metadata = kind not in _NEEDED and kind[0:1].islower()
        content = data[start + 8 : end - 4]
        if is_metadata and kind in _TEXTS and _keyword(content) in (*XMP_KEYS, *RAW_EXIF_KEYS):
            if zlib.crc32(kind + content) == int.from_bytes(data[end - 4 : end]):
                texts |= _text_of_chunk(kind, content)
            else:
                is_metadata = False
        if not is_metadata:
            kept.append(data[start:end])
    return (b"".join(kept), texts) if len(kept) > 1 and sum(map(len, kept)) < min(end, len(data)) else None


def _keyword(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("latin-1")


def _text_of_chunk(kind: bytes, content: bytes) -> dict[str | tuple[int, int], Any]:
    """The keyword and the first _MOST_BYTES bytes of the text of a chunk; nothing if it cannot be decompressed."""
    _, _, text = content.partition(b"\0")
    is_compressed = kind == b"zTXt"
    if kind == b"iTXt":
        is_compressed, text = text[:1] == b"\x01", text[2:].split(b"\0", 2)[-1]  # after the language and its keyword
    elif is_compressed:
        text = text[1:]
    if is_compressed:
        try:
            text = zlib.decompressobj().decompress(text, _MOST_BYTES)
        except zlib.error:
            return {}
    return {_keyword(content): text[:_MOST_BYTES]}
