"""Lists the members of a tar with their offsets, so that webdataset shards are read without unpacking."""

import errno
import logging
import os
import posixpath
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from captionmill.data.errors import ImageError, InputError
from captionmill.data.images.formats.kinds import ALL_IMAGE_SUFFIXES
from captionmill.data.images.read import known_ns, seconds_to_ns
from captionmill.data.images.walk import suffix_of
from captionmill.data.regular import open_regular
from captionmill.data.urls import open_filesystem, storage_errors

_logger = logging.getLogger(__name__)
TAR_SUFFIX = ".tar"
_MOST_STEPS = 40  # as Linux follows
_BLOCK = tarfile.BLOCKSIZE  # bytes of a header, and of the end mark
_MOST_ZEROS = 128 * _BLOCK  # at the end; tar fills up 20 blocks, and few programs more than 126
_CHUNK = 2048 * _BLOCK  # bytes read at once in search of a tar behind the end mark
_CUT = "the tar is cut short or damaged; copy it again"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class TarMember(NamedTuple):
    """A file inside a tar."""

    name: str
    offset: int
    """Where its bytes begin, from the start of the tar."""
    size: int
    """Bytes."""
    modified_ns: int
    """Time of its last change in the tar, or else that of the tar itself, nanoseconds since 1970."""
    written_name: str = ""
    """The name as it is in the tar, such as `./a.jpg`."""


def is_compressed_tar(path: Path | str) -> bool:
    """Whether `path` has the suffix of a compressed tar."""
    return str(path).lower().endswith(COMPRESSED_SUFFIXES)


def refuse_compressed(path: Path | str) -> None:
    """Raise InputError for a compressed tar, whose members cannot be read one by one."""
    if is_compressed_tar(path):
        raise InputError(f"{path}: a compressed tar cannot be read in parts; unpack it, or make it a plain .tar")


def list_members(path: Path | str, replaced: list[TarMember] | None = None) -> Collection[TarMember]:
    """The regular files in the tar at `path`, a file or a URL. Of members with the same name, the last.

    Those before it, which unpacking would replace, are added to `replaced`. Tars that follow each other in one file are
    one tar, and the end mark may be missing. Sparse members, symbolic links and hard links to what is not in the tar
    are left out with a warning. Raises ImageError if it is not a tar, is cut inside a member, is damaged or cannot be
    read; InputError if a package is missing.
    """
    members: dict[str, TarMember] = {}
    sparse: list[str] = []
    links: dict[str, str] = {}
    symbolic: list[str] = []
    replaced = [] if replaced is None else replaced
    with storage_errors(ImageError, "not a readable tar"):
        own_ns = known_ns(path.stat().st_mtime_ns) if isinstance(path, Path) else 0
        with open_tar(path) as file:
            size = file.seek(0, 2)
            for info, _ in read_entries(file, path):
                name = unpacked_name(info.name)
                target = unpacked_name(info.linkname) if info.islnk() else ""
                if info.isdir() or target == name:  # GNU tar links a file to itself if it is given twice
                    continue
                if name in members:
                    replaced.append(members.pop(name))
                links.pop(name, None)
                if target in members:
                    members[name] = members[target]._replace(name=name, written_name=info.name)
                elif target:
                    links[name] = target
                elif info.issym():
                    symbolic.append(name)
                elif info.issparse():
                    sparse.append(name)
                elif info.isreg() or info.type not in tarfile.SUPPORTED_TYPES:  # as POSIX demands
                    modified_ns = seconds_to_ns(info.mtime) or own_ns
                    members[name] = TarMember(name, info.offset_data, info.size, modified_ns, info.name)
    _follow_links(members, links)
    if any(member.offset + member.size > size for member in members.values()):
        raise ImageError(_CUT)
    if sparse:
        _logger.warning(
            "%s: %d sparse members left out, such as %r; pack them as ordinary files", path, len(sparse), sparse[0]
        )
    lost = [name for name in (*links, *symbolic) if name not in members and suffix_of(name) in ALL_IMAGE_SUFFIXES]
    if lost:
        _logger.warning("%s: %d links left out, such as %r; pack what they point to", path, len(lost), lost[0])
    return members.values()


def _follow_links(members: dict[str, TarMember], links: dict[str, str]) -> None:
    """Add the hard links to `members` that lead, directly or through others, to one that came later."""
    for name in links:
        target, steps = name, 0
        while target in links and target not in members and steps <= _MOST_STEPS:
            target, steps = links[target], steps + 1
        if target in members:
            members[name] = members[target]._replace(name=name, written_name=name)


def read_entries(file: Any, path: Path | str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """What the tar in `file` holds, and what tars behind its end mark hold: each entry, and where its bytes end.

    Raises ImageError if it is cut short or damaged, and what `tarfile` raises if it begins with no tar.
    """
    start: int | None = 0
    while start is not None:
        file.seek(start)
        archive: Any
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                yield info, archive.offset
                archive.members = []  # tarfile would keep them all; a shard may have a million
            end = archive.offset
        file.seek(end)
        block = file.read(_BLOCK)
        if block.strip(b"\0"):  # tarfile takes a damaged header for the end
            raise ImageError(_CUT)
        if not block:
            _logger.warning("%s: no end mark; if it was cut between two members, later ones are missing", path)
        start = _next_tar(file, end, path)


def _next_tar(file: Any, start: int, path: Path | str) -> int | None:
    """Where another tar begins behind the zeros at `start`; None if nothing follows, or something else.

    A warning names what cannot be read there, and more zeros than a tar ends with: members may have been there.
    """
    first = start
    file.seek(start)
    while chunk := file.read(_CHUNK):
        behind_zeros = chunk.lstrip(b"\0")
        if behind_zeros:
            skipped = (len(chunk) - len(behind_zeros)) // _BLOCK * _BLOCK
            try:
                tarfile.TarInfo.frombuf(chunk[skipped : skipped + _BLOCK], "utf-8", "surrogateescape")
            except tarfile.TarError:
                _logger.warning("%s: what follows its end mark, at byte %s, is not a tar; left out", path, f"{first:,}")
                return None
            return start + skipped
        start = _skip_hole(file, start + len(chunk))
        file.seek(start)
    if start - first > _MOST_ZEROS:
        _logger.warning(
            "%s: the last %s bytes are zeros; if it was copied in part, later members are missing",
            path,
            f"{start - first:,}",
        )
    return None


def _skip_hole(file: Any, start: int) -> int:
    """Where the zeros at `start` that take no place on the disk end: a small file may show terabytes of them."""
    try:
        descriptor = file.fileno()
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
    except (AttributeError, OSError):  # of a server
        return start
    try:
        data = os.lseek(descriptor, start, os.SEEK_DATA)
    except (AttributeError, OSError) as exc:  # nothing but a hole; or a system that does not say
        data = os.fstat(descriptor).st_size if getattr(exc, "errno", None) == errno.ENXIO else start
    os.lseek(descriptor, place, os.SEEK_SET)
    return start + max(0, data - start) // _BLOCK * _BLOCK


def unpacked_name(name: str) -> str:
    """The path that a member called `name` is unpacked to: `./a.jpg` and `/a.jpg` are both `a.jpg`."""
    return posixpath.normpath(name.lstrip("/"))


def open_tar(path: Path | str) -> Any:
    """The bytes of the tar at `path`, a file or a URL, open for reading at any place."""
    if isinstance(path, Path):
        return open_regular(path)
    filesystem, inner = open_filesystem(path)
    return filesystem.open(inner, "rb")
