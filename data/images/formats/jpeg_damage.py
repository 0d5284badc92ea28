"""Which damage of a JPEG is accepted: what changes no pixel, and what changes few.

A file that libjpeg-turbo decodes with a warning is accepted in three cases:

- nothing but the end mark is missing, and every scan is there; zeros may follow;
- the warning is about metadata, about bytes between segments, or about zeros that fill up a scan;
- the file has restart markers (ITU-T T.81, E.1.4), all of them in order, and the intervals between them that cannot be
  decoded hold at most 5 % of the pixels. A marker keeps damage from spreading.

Anything else may have changed any pixel after it: a lost marker, a wrong code, data that end too early or too late, and
zeros in the middle, which decode without a warning.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import simplejpeg

MOST_DAMAGED = 0.05  # of the pixels

_SOF = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), (0xC2, 0xCA)
_SOS, _DRI, _EOI, _APP0, _DHT = 0xDA, 0xDD, 0xD9, 0xE0, 0xC4
_END_OF_BLOCK = 0
_HOLE = bytes(256)
_END_OF_SCAN = re.compile(rb"\xff+[\xc0-\xcf\xd9-\xdf\xe0-\xef\xfe]")
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
_FILLING = re.compile(rb"(?:(?<![\0\xff])|(?<=\xff\0))\0++(?=\xff+[\xd0-\xd7]|\Z)")  # a zero after 0xff is no filling
_SPREADS = re.compile(r"premature end|bad Huffman|instead of RST|bad arithmetic|extraneous bytes", re.IGNORECASE)
_LONGEST_SIDE = 65_000


class _Jpeg(NamedTuple):
    """The first image of a JPEG in pieces."""

    segments: list[tuple[int, bytes]]
    """Marker, and the segment from its length on; those before and between scans."""
    scans: list[tuple[int, bytes]]
    """For each scan, the number of segments before its data, and the data."""
    is_ended: bool
    """The end mark is there."""

    def header(self, marker: int) -> bytes:
        """The content of the last segment with this marker, or nothing."""
        return next((content[2:] for found, content in reversed(self.segments) if found == marker), b"")

    @property
    def frame(self) -> tuple[int, bytes]:
        """The marker and the content of the frame header, (0, nothing) if there is none."""
        return next(((marker, content[2:]) for marker, content in self.segments if marker in _SOF), (0, b""))

    def joined(self) -> bytes:
        """A whole file of the pieces."""
        parts = [b"\xff\xd8"]
        done = 0
        for count, data in self.scans:
            parts += [b"\xff%c%s" % segment for segment in self.segments[done:count]]
            parts.append(data)
            done = count
        return b"".join([*parts, b"\xff\xd9"])


def accept_damage(data: bytes, warning: str) -> bytes | None:
    """The JPEG `data`, which libjpeg-turbo decodes with `warning`, made whole if its damage is accepted; else None."""
    spreads = _SPREADS.search(warning) is not None
    jpeg = _split(data)
    if jpeg is None or not jpeg.scans or not (jpeg.is_ended or _has_all_scans(jpeg)):
        return None if spreads else data
    whole = jpeg.joined()
    if not _spreads(whole, jpeg):  # a harmless first warning may hide others
        return whole if spreads else data
    jpeg = jpeg._replace(scans=[(count, _FILLING.sub(b"", scan)) for count, scan in jpeg.scans])
    whole = jpeg.joined()
    return whole if not _spreads(whole, jpeg) or _damaged_share(jpeg) <= MOST_DAMAGED else None


def has_hole(data: bytes) -> bool:
    """Whether zeros stand for a part of the pixels of a JPEG that decodes without a warning.

    Known only where zeros cannot be the codes of a flat area: in one scan without restart markers, in which they would
    be coefficients of -1 throughout, as in files without optimized codes.
    """
    if _HOLE not in data:
        return False
    jpeg = _split(data)
    if jpeg is None or len(jpeg.scans) != 1 or jpeg.frame[0] not in _SEQUENTIAL or any(jpeg.header(_DRI)):
        return False
    tables = [content[2:] for marker, content in jpeg.segments if marker == _DHT]
    is_flat = all(symbol == _END_OF_BLOCK for table in tables for symbol in _symbols_of_zeros(table))
    return not is_flat and _HOLE in jpeg.scans[0][1]


def _symbols_of_zeros(tables: bytes) -> Iterator[int]:
    """The symbol that zeros stand for in each of the Huffman tables for AC coefficients (ITU-T T.81, B.2.4.2)."""
    while len(tables) > 17:
        if tables[0] >> 4:
            yield tables[17]
        tables = tables[17 + sum(tables[1:17]) :]


def _split(data: bytes) -> _Jpeg | None:
    """The pieces of a JPEG, without bytes between segments and without padding after a last scan; None if cut short."""
    segments: list[tuple[int, bytes]] = []
    scans: list[tuple[int, bytes]] = []
    start = 2
    while found := _END_OF_SCAN.search(data, start):
        marker, start = data[found.end() - 1], found.end()
        if marker == _EOI:
            return _Jpeg(segments, scans, True)
        end = start + int.from_bytes(data[start : start + 2])
        content = data[start:end]
        if end > len(data) or len(content) < 2:
            return None
        if marker == _APP0 and content[2:7] == b"JFIF\0":
            content = content[:7] + b"\x01" + content[8:]  # an unknown version would hide other warnings
        segments.append((marker, content))
        start = end
        if marker == _SOS:
            next_one = _END_OF_SCAN.search(data, start)
            scan = data[start : next_one.start()] if next_one else _FILLING.sub(b"", data[start:])
            scans.append((len(segments), scan))
            start += len(scan)
    return _Jpeg(segments, scans, False)


def _has_all_scans(jpeg: _Jpeg) -> bool:
    """Whether the scans hold every component, and in a progressive file every bit of every coefficient."""
    marker, frame = jpeg.frame
    missing = {(component, band) for component in _components(frame) for band in range(64)}
    for found, content in jpeg.segments:
        if found == _SOS:
            count = content[2]
            first, last, bits = content[3 + 2 * count : 6 + 2 * count]
            if marker not in _PROGRESSIVE:
                first, last, bits = 0, 63, 0
            bands = range(first, last + 1) if bits & 15 == 0 else range(0)
            missing -= {(content[3 + 2 * number], band) for number in range(count) for band in bands}
    return not missing


def _components(frame: bytes) -> dict[int, tuple[int, int]]:
    """The identifier of each component, with its horizontal and vertical sampling factors."""
    return {frame[at]: (frame[at + 1] >> 4, frame[at + 1] & 15) for at in range(6, len(frame) - 2, 3)}


def _damaged_share(jpeg: _Jpeg) -> float:
    """The share of the pixels in restart intervals that cannot be decoded; 1 if damage is not kept to its interval."""
    marker, frame = jpeg.frame
    factors = _components(frame).values()
    interval = int.from_bytes(jpeg.header(_DRI))
    if marker not in _SEQUENTIAL or len(jpeg.scans) != 1 or not interval or not factors:
        return 1.0
    if len(factors) == 1:
        unit_width, unit_height = 8, 8
    else:
        unit_width, unit_height = (8 * max(factor[axis] for factor in factors) for axis in (0, 1))
    height, width = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
    units = -(-width // unit_width) * -(-height // unit_height)
    pieces = _RESTART.split(jpeg.scans[0][1])
    counts = [min(interval, units - first) for first in range(0, units, interval)]
    if [marker[0] & 7 for marker in pieces[1::2]] != [number & 7 for number in range(len(counts) - 1)]:
        return 1.0
    damaged = 0
    for count, piece in zip(counts, pieces[::2], strict=True):
        rows = next(
            rows for rows in range(1, count + 1) if count % rows == 0 and count // rows * unit_width < _LONGEST_SIDE
        )
        interval_only = _alone(jpeg, piece, count // rows * unit_width, rows * unit_height)
        damaged += count if _spreads(interval_only, jpeg) else 0
    return damaged / units


def _alone(jpeg: _Jpeg, piece: bytes, width: int, height: int) -> bytes:
    """A JPEG of this size that consists of the data of one restart interval."""
    size = height.to_bytes(2) + width.to_bytes(2)
    segments = [
        (marker, content[:3] + size + content[7:] if marker in _SOF else content) for marker, content in jpeg.segments
    ]
    return _Jpeg(segments, [(len(segments), piece)], True).joined()


def _spreads(data: bytes, jpeg: _Jpeg) -> bool:
    """Whether libjpeg-turbo reports damage that may spread in `data`, which has the components of `jpeg`."""
    try:
        simplejpeg.decode_jpeg(data, "CMYK" if len(_components(jpeg.frame[1])) == 4 else "RGB", strict=True)
    except ValueError as exc:
        return _SPREADS.search(str(exc)) is not None
    return False
