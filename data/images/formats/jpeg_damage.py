"""Which damage of a JPEG is accepted: what changes no pixel, and what changes few.

A file that libjpeg-turbo decodes with a warning is accepted in three cases:

- nothing but the end mark is missing, and every scan is there; zeros may follow;
- the warning is about metadata, about bytes between segments, or about zeros that fill up a scan;
- the file has restart markers (ITU-T T.81, E.1.4), all of them in order, and the intervals between them that cannot be
  decoded hold at most 5 % of the pixels. A marker keeps damage from spreading.

Anything else may have changed any pixel after it: a lost marker, a wrong code, data that end too early or too late, and
zeros in the middle, which decode without a warning.
"""

import math
import re
from typing import NamedTuple

import simplejpeg

MOST_DAMAGED = 0.05  # of the pixels

_SOF = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_SEQUENTIAL, _PROGRESSIVE, _HUFFMAN_CODED = (0xC0, 0xC1), (0xC2, 0xCA), (0xC0, 0xC1, 0xC2)
_SOS, _DRI, _EOI, _APP0, _DHT, _DQT = 0xDA, 0xDD, 0xD9, 0xE0, 0xC4, 0xDB
_END_OF_BLOCK, _ZERO_RUN = 0, 0xF0
_DC_RANGE = 2048  # of the first coefficient of a block of 8-bit pixels
_HOLE, _ZEROS = bytes(256), re.compile(rb"\0{256,}")
_FF = b"\xff"  # any number of them may be before a marker; a pattern of `\xff+` would try each as the first
_END_OF_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd9-\xdf\xe0-\xef\xfe]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
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

    Known only where so many zeros cannot be the codes of an image, and only without restart markers.
    """
    if _HOLE not in data:
        return False
    jpeg = _split(data)
    if jpeg is None or jpeg.frame[0] not in _HUFFMAN_CODED or any(jpeg.header(_DRI)):
        return False
    return any(_HOLE in scan and not _can_be_zeros(jpeg, count, scan) for count, scan in jpeg.scans)


def _can_be_zeros(jpeg: _Jpeg, count: int, scan: bytes) -> bool:
    """Whether the most zeros in a row of the scan after `count` segments may be the codes of a flat area.

    They are not where they would be coefficients of -1 and less throughout, where the first coefficient would fall
    below what 8-bit pixels give, and where each flat block has its own code though runs of them have a shorter one
    (ITU-T T.81, F.1.2 and G.1.2). The bits that refine coefficients may all be zeros.
    """
    marker, frame = jpeg.frame
    header = jpeg.segments[count - 1][1][2:]
    selectors = dict(zip(header[1 : 1 + 2 * header[0] : 2], header[2 : 2 + 2 * header[0] : 2], strict=True))
    first, _, bits = header[1 + 2 * header[0] : 4 + 2 * header[0]]
    codes = _codes_of_zeros(jpeg.segments[:count])
    if bits >> 4:
        return True
    if marker in _PROGRESSIVE and first:
        _, symbol, has_runs = codes[0x10 | next(iter(selectors.values())) & 15]
        return symbol & 15 == 0 and symbol != _ZERO_RUN and not (symbol == _END_OF_BLOCK and has_runs)
    unit, falls = 0, dict.fromkeys(selectors, 0)
    for component, selector in selectors.items():
        length, size, _ = codes[selector >> 4]
        if marker in _SEQUENTIAL:
            end_length, symbol, _ = codes[0x10 | selector & 15]
            if symbol != _END_OF_BLOCK:
                return False
            length += end_length
        factors = _components(frame)[component] if len(selectors) > 1 else (1, 1)
        unit += math.prod(factors) * (length + size)
        falls[component] = math.prod(factors) * ((1 << size) - 1) << (bits & 15)
    units = 8 * (max(map(len, _ZEROS.findall(scan))) - 1) // unit - 1
    steps = _first_steps(jpeg)
    return all(units * fall * steps[component] <= _DC_RANGE + steps[component] for component, fall in falls.items())


def _codes_of_zeros(segments: list[tuple[int, bytes]]) -> dict[int, tuple[int, int, bool]]:
    """For each Huffman table, by class and number: the length and the symbol of the code of zeros (T.81, B.2.4.2).

    With each, whether the table has codes of several flat blocks.
    """
    codes = {}
    for tables in [content[2:] for marker, content in segments if marker == _DHT]:
        rest = tables
        while len(rest) > 17:
            symbols = rest[17 : 17 + sum(rest[1:17])]
            length = next((length for length, number in enumerate(rest[1:17], start=1) if number), 1)
            codes[rest[0]] = (length, rest[17], any(symbol & 15 == 0 < symbol < _ZERO_RUN for symbol in symbols))
            rest = rest[17 + len(symbols) :]
    return codes


def _first_steps(jpeg: _Jpeg) -> dict[int, int]:
    """The quantization step of each component's first coefficient (T.81, B.2.4.1)."""
    steps = {}
    for tables in [content[2:] for marker, content in jpeg.segments if marker == _DQT]:
        rest = tables
        while rest:
            wide = 1 + (rest[0] >> 4)
            steps[rest[0] & 15] = int.from_bytes(rest[1 : 1 + wide])
            rest = rest[1 + 64 * wide :]
    frame = jpeg.frame[1]
    return {frame[at]: steps[frame[at + 2]] for at in range(6, len(frame) - 2, 3)}


def _split(data: bytes) -> _Jpeg | None:
    """The pieces of a JPEG, without bytes between segments and without padding after a last scan; None if cut short."""
    segments: list[tuple[int, bytes]] = []
    scans: list[tuple[int, bytes]] = []
    start = 2
    while found := _END_OF_SCAN.search(data, start):
        marker, start = found[0][1], found.end()
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
            scan = data[start : next_one.start()].rstrip(_FF) if next_one else _FILLING.sub(b"", data[start:])
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
    *pieces, last_piece = _RESTART.split(jpeg.scans[0][1])
    pieces = [*(piece.rstrip(_FF) for piece in pieces), last_piece]
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
