"""The chunks of a PNG: those of the pixels must be whole; a damaged or huge text or colour profile is not needed.

Pillow does not look at the checksums of the pixels, and refuses a file for any other (PNG specification, 5.5 and 11).
"""

import zlib
from typing import Any

from captionmill.data.errors import ImageError
from captionmill.data.images.formats.orientation import RAW_EXIF_KEYS, XMP_KEYS

_SIGNATURE_BYTES = 8
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_MOST_BYTES = 4_000_000  # decompressed at once, and of EXIF or XMP in all


def require_whole_pixels(data: bytes) -> None:
    """Raise ImageError if a checksum of the pixels is wrong: that of a chunk, or of all of them if the last is cut."""
    start, kind = _SIGNATURE_BYTES, b""
    view = memoryview(data)
    chunks: list[memoryview] = []
    while kind != b"IEND" and start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        kind = data[start + 4 : start + 8]
        if kind == b"IDAT":
            chunks.append(view[start + 8 : end - 4])
            is_whole = (
                zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(view[end - 4 : end])
                if end <= len(data)
                else _is_whole_stream(chunks)
            )
            if not is_whole:
                raise ImageError("truncated or damaged image (wrong checksum of the pixels)")
        start = end


def _is_whole_stream(chunks: list[memoryview]) -> bool:
    """Whether the zlib stream in `chunks` ends with its right checksum."""
    stream = zlib.decompressobj()
    try:
        for chunk in chunks:
            rest = bytes(chunk)
            while rest and not stream.eof:
                stream.decompress(rest, _MOST_BYTES)
                rest = stream.unconsumed_tail
    except zlib.error:
        return False
    return stream.eof


def without_metadata(data: bytes) -> tuple[bytes, dict[str | tuple[int, int], Any]] | None:
    """A PNG without the chunks that its pixels do not need, and its EXIF and XMP texts, as in the `info` of Pillow.

    Damaged chunks that are needed, EXIF and XMP among them, stay as they are. None if the chunks cannot be followed, or
    if all are needed. Nothing that is left out is decompressed, so that a bomb of text costs nothing.
    """
    kept = [data[:_SIGNATURE_BYTES]]
    texts: dict[str | tuple[int, int], Any] = {}
    start, kind = _SIGNATURE_BYTES, b""
    while kind != b"IEND" and start < len(data):
        size, kind = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        end = start + 12 + size
        if not kind.isalpha():
            return None
        is_metadata = kind not in _NEEDED and kind[0:1].islower()
        if (
            is_metadata
            and kind in _TEXTS
            and _keyword(content := data[start + 8 : end - 4]) in (*XMP_KEYS, *RAW_EXIF_KEYS)
        ):
            if zlib.crc32(kind + content) == int.from_bytes(data[end - 4 : end]):
                texts |= _read_text(kind, content)
            else:
                is_metadata = False
        if not is_metadata:
            kept.append(data[start:end])
        start = end
    return (b"".join(kept), texts) if len(kept) > 1 and sum(map(len, kept)) < min(start, len(data)) else None


def _keyword(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("latin-1")


def _read_text(kind: bytes, content: bytes) -> dict[str | tuple[int, int], Any]:
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
