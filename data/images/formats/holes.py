"""Zeros where compressed pixels were: what an interrupted copy or download, or a bad disk, leaves of a part of a file.

Decoders of formats without checksums make up pixels from them. The pixels of HEIC and AVIF hold at most 16 zeros one
after the other (measured in photos, pages and flat images, written by Pillow and libheif). A WebP may hold thousands,
but a sound one cannot be decoded without its last bytes.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence

from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captionmill.data.images.formats.jpeg_damage import has_hole

_HOLE = bytes(64)
_LARGE_HOLE = bytes(8192)  # where metadata may lie between the pixels
_CODED_ITEMS = (b"hvc1", b"hev1", b"av01", b"avc1", b"vvc1")  # ISO/IEC 23008-12 and AV1 Image File Format
_NEEDED_BYTES = 16  # at the end of a WebP
_LOSSLESS_START = b"\x2f"  # WebP Lossless Bitstream Specification, 3.4
_GROUP_4, _LZW, _OLD_JPEG, _JPEG, _DEFLATE, _PACKBITS = 4, 5, 6, 7, (8, 32946), 32773  # compressions of a TIFF
_TIFF_WEBP, _TIFF_JPEG_2000 = 50001, (33003, 33004, 33005, 34712)
_CODESTREAM_START, _START_OF_TILE, _CODING_STYLE = b"\xff\x4f\xff\x51", b"\xff\x90", b"\xff\x52"  # 15444-1, A.2
_OTHER_CODING_STYLES = (b"\xff\x50", b"\xff\x53", b"\xff\x5f")
_RAW_BITS = 1
_JPEG_TABLES = 347
_STRIPS = ((273, 279), (324, 325))  # offsets and byte counts of strips, and of tiles
_PLANAR = 2  # each sample has its own strips
_AT_ONCE = 1 << 22
_ZEROS = "a part of it is zeros"


def require_whole_heif(data: bytes) -> None:
    """Raise EOFError if zeros stand for a part of the images in a HEIC or AVIF; its metadata may hold zeros."""
    coded = list(_coded_places(data))
    media = coded or [(start, end) for kind, start, end in boxes(data) if kind == b"mdat"]
    if any(data.find(_HOLE if coded else _LARGE_HOLE, start, end) >= 0 for start, end in media):
        raise EOFError(_ZEROS)


def require_whole_webp(data: bytes, size: tuple[int, int]) -> None:
    """Raise EOFError if zeros stand for a part of the first frame of a WebP of `size`, width and height."""
    for kind, start, end in _webp_chunks(data, 12, len(data)):
        if kind == b"ANMF":
            width, height = (int.from_bytes(data[start + at : start + at + 3], "little") + 1 for at in (6, 9))
            for inner in _webp_chunks(data, start + 16, end):
                _require_needed_end(data, *inner, (width, height))
            return
        _require_needed_end(data, kind, start, end, size)


def require_whole_strips(data: bytes, image: TiffImageFile) -> None:
    """Raise EOFError if a strip or tile is missing or has a wrong checksum, or if zeros stand for a part of one.

    libtiff looks at the checksums of Deflate only sometimes, and takes wrong codes of Group 4 for white lines. Pillow
    makes strips that are not there black.
    """
    _require_all_strips(image.tag_v2)
    for offsets, counts in _STRIPS:
        for start, count in zip(image.tag_v2.get(offsets, ()), image.tag_v2.get(counts, ()), strict=False):
            strip = data[start : start + count]
            if image.tag_v2.get(259) in _DEFLATE and count and stream_length([strip]) is None:
                raise EOFError("wrong checksum of the pixels")
            if _tiff_has_hole(strip, image):
                raise EOFError(_ZEROS)


def _require_all_strips(tags: ImageFileDirectory_v2) -> None:
    """Raise EOFError unless the directory names as many strips or tiles as its image has (TIFF 6.0, 3 and 15)."""
    width, length, offsets = tags[256], tags[257], tags.get(273)
    across, rows = 1, min(tags.get(278, length), length)
    if offsets is None:
        if tags.get(259) == _OLD_JPEG:  # which may be one JPEG that other tags name (section 22)
            return
        across, rows = math.ceil(width / max(tags.get(322, width), 1)), tags.get(323, length)
        offsets = tags.get(324, ())
    planes = tags.get(277, 1) if tags.get(284) == _PLANAR else 1
    if sum(map(bool, offsets)) < planes * across * math.ceil(length / max(rows, 1)):  # at 0 is the header
        raise EOFError("a strip or a tile is missing")


def require_whole_codestream(data: bytes) -> None:
    """Raise EOFError if zeros stand for a part of a JPEG 2000 codestream.

    A sound one may have a zero for each of its packets that is empty, and for the code-blocks that a packet leaves out
    (ISO/IEC 15444-1, B.10).
    """
    start = data.find(_CODESTREAM_START)
    tiles = data.find(_START_OF_TILE, start)
    if data.find(bytes(_zeros_in_sound_codestream(data[start:tiles]) + 1), tiles) >= 0:
        raise EOFError("a part of the JPEG 2000 codestream is zeros")


def _zeros_in_sound_codestream(header: bytes) -> int:
    """The most zeros in a row that a codestream with this main header may hold."""
    style = header.find(_CODING_STYLE, 42)
    if style < 0 or len(header) < style + 13 or any(marker in header for marker in _OTHER_CODING_STYLES):
        return len(_LARGE_HOLE) - 1
    width, height, left, top, tile_width, tile_height = struct.unpack_from(">6I", header, 8)
    sides = min(tile_width, width - left), min(tile_height, height - top)
    components = int.from_bytes(header[40:42])
    has_precincts, _, layers, _, levels, *exponents, coding = struct.unpack_from(">BBHBBBBB", header, style + 4)
    packets, blocks = 0, math.prod(1 + (side >> exponent + 2) for side, exponent in zip(sides, exponents, strict=True))
    for level in range(levels + 1):
        precinct = (header[style + 14 + levels - level :] if has_precincts & 1 else b"")[:1] or b"\xff"
        packets += math.prod(
            2 + (side >> level + (precinct[0] >> shift & 15)) for side, shift in zip(sides, (0, 4), strict=True)
        )
    if coding & _RAW_BITS:
        return len(_LARGE_HOLE) - 1
    most: int = layers * components * packets + 2 * blocks + 256
    return min(most, len(_LARGE_HOLE) - 1)


def _tiff_has_hole(strip: bytes, image: TiffImageFile) -> bool:
    """Whether zeros stand for a part of a strip or tile; known only for some compressions.

    No code of Group 4 and no two codes in a row have 24 zeros (ITU-T T.6); LZW has no third code of 0 in a row and
    PackBits no run of 129 literal zeros.
    """
    compression = image.tag_v2.get(259)
    if compression == _JPEG:
        return has_hole(bytes(image.tag_v2.get(_JPEG_TABLES, b""))[:-2] + strip[2:])
    if compression == _TIFF_WEBP:
        require_whole_webp(strip, (1, 1))
    if compression in _TIFF_JPEG_2000:
        require_whole_codestream(strip)
    if compression == _GROUP_4 and bytes(8) in strip.rstrip(b"\0"):
        return True
    return compression in (_GROUP_4, _LZW, _PACKBITS) and bytes(512) in strip


def stream_length(pieces: Sequence[bytes | memoryview]) -> int | None:
    """How many bytes the zlib stream in `pieces` holds; None if it does not end with its right checksum."""
    stream = zlib.decompressobj()
    length = 0
    try:
        for piece in pieces:
            rest = bytes(piece)
            while rest and not stream.eof:
                length += len(stream.decompress(rest, _AT_ONCE))
                rest = stream.unconsumed_tail
    except zlib.error:
        return None
    return length if stream.eof else None


def boxes(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each box between two places, and where its content begins and ends (ISO/IEC 14496-12, 4.2)."""
    stop = len(data) if stop is None else stop
    while stop - start >= 8:
        size, content = int.from_bytes(data[start : start + 4]), start + 8
        if size == 1:  # the size takes 64 bits
            size, content = int.from_bytes(data[content : content + 8]), content + 8
        end = start + size if size else stop
        if end < content:
            return
        yield data[start + 4 : start + 8], content, min(end, stop)
        start = end


def _coded_places(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the coded pixels of a HEIC or AVIF lie (ISO/IEC 14496-12, 8.11.3 and 8.11.6)."""
    meta = next((box for box in boxes(data) if box[0] == b"meta"), None)
    if meta is None:
        return
    inside = {kind: (start, end) for kind, start, end in boxes(data, meta[1] + 4, meta[2])}
    if b"iinf" not in inside or b"iloc" not in inside:
        return
    start, end = inside[b"iinf"]
    coded = set()
    for _, entry, _ in boxes(data, start + (6 if data[start] == 0 else 8), end):
        wide = 4 if data[entry] >= 3 else 2
        if data[entry + 6 + wide : entry + 10 + wide] in _CODED_ITEMS:
            coded.add(int.from_bytes(data[entry + 4 : entry + 4 + wide]))
    start, end = inside[b"iloc"]
    numbers = _UnsignedNumbers(data[start:end])
    version = numbers.take(1)
    numbers.take(3)
    sizes = numbers.take(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = 4 if version >= 2 else 2
    for _ in range(numbers.take(wide)):
        item = numbers.take(wide)
        is_in_file = not (numbers.take(2) & 15 if version else 0)
        numbers.take(2)
        base = numbers.take(base_size)
        for _ in range(numbers.take(2)):
            numbers.take(index_size if version else 0)
            offset, length = base + numbers.take(offset_size), numbers.take(length_size)
            if item in coded and is_in_file:
                yield offset, offset + length if length else len(data)


class _UnsignedNumbers:
    """Unsigned numbers that follow each other; ValueError behind the last."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def take(self, size: int) -> int:
        """The next one, of `size` bytes."""
        read = self._file.read(size)
        if len(read) < size:
            raise ValueError("the list of items is cut short")
        return int.from_bytes(read)


def _webp_chunks(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk of a WebP, and where its content begins and ends."""
    while start + 8 <= end:
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        yield data[start : start + 4], start + 8, min(start + 8 + size, end)
        start += 8 + size + size % 2


def _require_needed_end(data: bytes, kind: bytes, start: int, end: int, size: tuple[int, int]) -> None:
    """Raise EOFError if pixels with zeros in them can be decoded without their end: what follows was not in step."""
    if kind not in (b"VP8 ", b"VP8L", b"ALPH") or data.find(_HOLE, start, end) < 0:
        return
    content = data[start : end - _NEEDED_BYTES]
    if kind == b"ALPH":
        if content[0] & 3 != 1:  # not compressed
            return
        sides = size[0] - 1 | size[1] - 1 << 14
        kind, content = b"VP8L", _LOSSLESS_START + sides.to_bytes(4, "little") + content[1:]
    chunk = kind + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)
    file = io.BytesIO(b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk)
    try:
        with WebPImageFile(file) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError):
        return
    raise EOFError(_ZEROS)
