"""Copies a tar with files added to it, each behind the member that it belongs to; every other byte stays as it is."""

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from captionmill.data.images.tar import list_members, open_tar, read_entries, unpacked_name

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 4096 * _BLOCK


class AddedFile(NamedTuple):
    """A file that is added to the copy of a tar."""

    suffix: str
    """Instead of that of the member before it, which gives the rest of its name."""
    content: bytes


def name_beside(name: str, suffix: str) -> str:
    """The name of the file with this suffix that belongs to the member `name`: a/0001.txt for a/0001.jpg."""
    stem, dot, _ = name.rpartition(".")
    return (stem if dot and not stem.endswith("/") else name) + suffix


def copy_tar(source: Path | str, copy: Path, added: Mapping[str, AddedFile]) -> int:
    """Write the tar at `source`, a file or a URL, to `copy`, with the files `added` behind the members of these names.

    A name is that of the unpacked member; of several such members, the last has the file behind it. Memory for one
    piece of the tar is enough. Returns the number of files added. Errors as `list_members`.
    """
    places = {member.name: member.offset for member in list_members(source)}
    done: set[str] = set()
    with open_tar(source) as file, open_tar(source) as content, copy.open("wb") as target:
        end = 0
        for info, next_end in read_entries(file, source):
            _copy_headers(content, target, end, info.offset)
            _copy_bytes(content, target, info.offset, next_end)
            end = next_end
            name = unpacked_name(info.name)
            is_link = info.islnk() and unpacked_name(info.linkname) != name
            if name in added and name not in done and (is_link or info.offset_data == places.get(name)):
                suffix, text = added[name]
                target.write(_packed(name_beside(info.name, suffix), text, info.mtime))
                done.add(name)
        target.write(b"\0" * 2 * _BLOCK)
        target.write(b"\0" * (-target.tell() % tarfile.RECORDSIZE))
    return len(done)


def _copy_headers(source: Any, target: IO[bytes], start: int, end: int) -> None:
    """Copy what is between two members: headers for all members behind them, but not the end mark of a tar."""
    source.seek(start)
    for _ in range(start, end, _BLOCK):
        block = source.read(_BLOCK)
        if block.strip(b"\0"):
            target.write(block)


def _copy_bytes(source: Any, target: IO[bytes], start: int, end: int) -> None:
    source.seek(start)
    left = end - start
    while left and (chunk := source.read(min(left, _CHUNK))):
        target.write(chunk)
        left -= len(chunk)
    target.write(b"\0" * left)  # the padding of a last member, if it is missing


def _packed(name: str, content: bytes, mtime: float) -> bytes:
    """A member of a tar, as unpacking it gives a file for everybody to read."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), int(mtime), 0o644
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return header + content + b"\0" * (-len(content) % _BLOCK)
