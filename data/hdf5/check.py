"""Checks the bookkeeping of an HDF5 file where HDF5 does not.

There, one wrong bit keeps HDF5 busy for ever, crashes it or makes it ask for gigabytes.

`seal_file` adds a checksum behind the end of HDF5, where HDF5 ignores it, of all bookkeeping that is not checked here.
A file that still has it can be opened without fear.

Source: HDF5 File Format Specification, versions 1 of the object header (IV.A.1.a), the attribute message (IV.A.2.m) and
the global heap (III.E), as HDF5 writes them by default. Files in other versions, of other tools, are not checked.
"""

import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import numpy.typing as npt

REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
"""A text of variable length in an attribute or a dataset: its bytes are in a global heap."""

_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10  # kinds of messages
_VARIABLE_LENGTH, _OF_TEXT = 9, 1  # class of a datatype, and kind of that class
_MOST_BLOCKS = 64  # of messages
_HEAP_START = b"GCOL\x01"
_HEAP_HEADER = 16  # bytes; likewise of each object in a heap
_LEAST_HEAP = 4096  # bytes
_HEAPS_AT_ONCE = 1024
_SEAL = struct.Struct("<8sQI")  # sign, bytes of HDF5, checksum; before it the ranges, behind it a checksum of both
_SEAL_SIGN = b"CMSEAL\x00\x01"
_LARGEST_SEAL = 1 << 24  # bytes
_AT_ONCE = 1 << 20  # bytes

Range = tuple[int, int]
"""Where bytes begin in a file, and how many they are."""


def seal_file(path: Path, numbers: Iterable[Range], texts: Iterable[Range]) -> None:
    """Add the checksum of the file at `path`, without the data of its datasets: `numbers`, and references to `texts`.

    The heaps that hold the texts are left out too: `check_references` examines them.
    """
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        left_out = [*numbers, *texts]
        for start, length in texts:
            file.seek(start)
            references = np.frombuffer(file.read(length), REFERENCE)
            for heap in np.unique(references["heap"][references["heap"] > 0]).tolist():
                file.seek(heap + 8)
                left_out.append((heap, struct.unpack("<Q", file.read(8))[0]))
        sealed, place = [], 0
        for start, length in sorted(left_out):
            if start > place:
                sealed.append((place, start - place))
            place = max(place, start + length)
        sealed.append((place, end - place))
        ranges = np.array(sealed, "<u8").tobytes()
        packed = ranges + _SEAL.pack(_SEAL_SIGN, end, _checksum_ranges(file, sealed))
        file.seek(end)
        file.write(packed + struct.pack("<I", zlib.crc32(packed)))


def is_sealed(file: BinaryIO) -> bool | None:
    """Whether the file is as `seal_file` left it; None for a file that has no such checksum."""
    size = file.seek(0, os.SEEK_END)
    if size < _SEAL.size + 4:
        return None
    file.seek(size - _SEAL.size - 4)
    seal = file.read(_SEAL.size)
    if len(seal) < _SEAL.size:  # a file that the system makes up has less in it than its size says
        return None
    sign, end, checksum = _SEAL.unpack(seal)
    if sign != _SEAL_SIGN:
        return None
    if end > size - _SEAL.size - 4 or size - end > _LARGEST_SEAL:
        return False
    file.seek(end)
    packed, own = file.read(size - end - 4), file.read(4)
    if struct.pack("<I", zlib.crc32(packed)) != own or (len(packed) - _SEAL.size) % 16:
        return False
    numbers = np.frombuffer(packed[: -_SEAL.size], "<u8").tolist()
    sealed = list(zip(numbers[::2], numbers[1::2], strict=True))
    return _are_apart(sealed, end) and _checksum_ranges(file, sealed) == checksum


def _are_apart(ranges: Iterable[Range], end: int) -> bool:
    """Whether the `ranges` follow each other up to `end`: no byte is read twice."""
    place = 0
    for start, length in ranges:
        if start < place or length > end - start:
            return False
        place = start + length
    return True


def _checksum_ranges(file: IO[bytes], ranges: Iterable[Range]) -> int:
    """CRC-32 of the bytes of `file` in `ranges`."""
    checksum = 0
    for start, length in ranges:
        file.seek(start)
        for size in (*[_AT_ONCE] * (length // _AT_ONCE), length % _AT_ONCE):
            checksum = zlib.crc32(file.read(size), checksum)
    return checksum


def check_attributes(file: BinaryIO, address: int, size: int) -> None:
    """Raise ValueError unless HDF5 can read the texts in the attributes of the object whose header is at `address`.

    `size` is that of the file in bytes.
    """
    references = [
        np.frombuffer(message, REFERENCE, 1, _start_of_value(message))
        for kind, message in _messages(file, address, size)
        if kind == _ATTRIBUTE and _is_text(message)
    ]
    if references:
        check_references(file, np.concatenate(references), size)


def check_references(file: BinaryIO, references: npt.NDArray[np.void], size: int) -> None:
    """Raise ValueError unless HDF5 can read the texts that `references` (of the type REFERENCE) stand for."""
    if int(references["length"].sum(dtype=np.uint64)) > size:
        raise ValueError(f"a text of {references['length'].max()} bytes in {size} bytes")
    by_words: dict[int, list[bytes]] = defaultdict(list)
    for heap in np.unique(references["heap"][references["heap"] > 0]).tolist():
        file.seek(heap if heap < size else size)
        start = file.read(_HEAP_HEADER)
        if len(start) < _HEAP_HEADER or not start.startswith(_HEAP_START):
            raise ValueError(f"no texts at byte {heap}")
        (heap_size,) = struct.unpack_from("<Q", start, 8)
        if not _LEAST_HEAP <= heap_size <= size - heap or heap_size % 8:
            raise ValueError(f"{heap_size} bytes of texts at byte {heap}")
        alike = by_words[heap_size // 8]
        alike.append(start + file.read(heap_size - _HEAP_HEADER))
        if len(alike) == _HEAPS_AT_ONCE:
            _check_heaps(alike)
            alike.clear()
    for alike in by_words.values():
        if alike:
            _check_heaps(alike)


def _check_heaps(heaps: list[bytes]) -> None:
    """Raise ValueError unless the objects of each of the `heaps`, all of one length, follow each other."""
    words = np.frombuffer(b"".join(heaps), "<u8").reshape(len(heaps), -1)
    count = words.shape[1]
    going = np.arange(len(heaps))
    places = np.full(len(heaps), _HEAP_HEADER // 8)
    while len(going):
        is_free = words[going, places] & 0xFFFF == 0  # the rest of the heap, with its own header
        lengths = words[going, places + 1]
        if (lengths > 8 * count).any():
            raise ValueError(f"a text of {lengths.max()} bytes among {8 * count} bytes of texts")
        steps = np.where(is_free, lengths // 8, 2 + (lengths + 7) // 8).astype(np.int64)
        places = places + steps
        if (steps < 2).any() or (places > count).any():
            raise ValueError("texts that do not follow each other")
        is_inside = places + 2 <= count
        going, places = going[is_inside], places[is_inside]


def _messages(file: BinaryIO, address: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each message of an object header of version 1."""
    file.seek(address)
    header = file.read(16)
    if len(header) < 16 or header[0] != 1:
        return
    blocks = [(address + 16, struct.unpack_from("<I", header, 8)[0])]
    for start, length in blocks:
        if start + length > size or len(blocks) > _MOST_BLOCKS:
            raise ValueError(f"bookkeeping at byte {start} of {size}")
        file.seek(start)
        block = file.read(length)
        place = 0
        while place + 8 <= length:
            kind, message_size = struct.unpack_from("<HH", block, place)
            message = block[place + 8 : place + 8 + message_size]
            if kind == _CONTINUATION and len(message) >= 16:
                blocks.append(struct.unpack_from("<QQ", message))
            yield kind, message
            place += 8 + message_size


def _is_text(message: bytes) -> bool:
    """Whether an attribute is a single text; ValueError if it is something that HDF5 does not know."""
    if len(message) < 8 or message[0] != 1:
        return False
    start, value = 8 + _padded(struct.unpack_from("<H", message, 2)[0]), _start_of_value(message)
    if start + 2 > len(message) or value + REFERENCE.itemsize > len(message):
        return False
    if message[start] & 0x0F != _VARIABLE_LENGTH:
        return False
    if message[start + 1] & 0x0F != _OF_TEXT:
        raise ValueError("an attribute of an unknown type")
    return True


def _start_of_value(message: bytes) -> int:
    return 8 + sum(_padded(length) for length in struct.unpack_from("<HHH", message, 2))


def _padded(length: int) -> int:
    return -(-length // 8) * 8
