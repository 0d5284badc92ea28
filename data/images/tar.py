"""Lists the members of a tar with their offsets, so that webdataset shards are read without unpacking."""

import posixpath
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from captionmill.data.errors import ImageError, InputError
from captionmill.data.images.read import known_ns, seconds_to_ns
from captionmill.data.urls import open_filesystem

TAR_SUFFIX = ".tar"
_BLOCK = 512  # bytes of a header, and of the end mark
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


def is_compressed_tar(path: Path | str) -> bool:
    """Whether `path` has the suffix of a compressed tar."""
    return str(path).lower().endswith(COMPRESSED_SUFFIXES)


def refuse_compressed(path: Path | str) -> None:
    """Raise InputError for a compressed tar, whose members cannot be read one by one."""
    if is_compressed_tar(path):
        raise InputError(f"{path}: a compressed tar cannot be read in parts; unpack it, or make it a plain .tar")


def list_members(path: Path | str) -> Collection[TarMember]:
    """The regular files in the tar at `path`, a file or a URL. Of members with the same name, the last.

    Raises ImageError if it is not a tar, is cut short or cannot be read; InputError if a package is missing.
    """
    members: dict[str, TarMember] = {}
    try:
        own_ns = known_ns(path.stat().st_mtime_ns) if isinstance(path, Path) else 0
        with _open(path) as file, _open_tar(file) as archive:
            size = file.seek(0, 2)
            for info in archive:
                name = _unpacked_name(info.name)
                if info.islnk() and (target := members.get(_unpacked_name(info.linkname))):
                    members[name] = target._replace(name=name)
                elif info.isreg() and not info.issparse():
                    modified_ns = seconds_to_ns(info.mtime) or own_ns
                    members[name] = TarMember(name, info.offset_data, info.size, modified_ns)
                archive.members = []  # tarfile would keep them all; a shard may have a million
            file.seek(archive.offset)
            is_whole = file.read(_BLOCK) == bytes(_BLOCK)  # tarfile takes a damaged header for the end
    except InputError:
        raise
    except Exception as exc:  # each remote filesystem raises its own errors
        raise ImageError(f"not a readable tar ({' '.join(str(exc).split())[:100]})") from exc
    if not is_whole or any(member.offset + member.size > size for member in members.values()):
        raise ImageError("the tar is cut short or damaged; copy it again")
    return members.values()


def _unpacked_name(name: str) -> str:
    """The path that a member called `name` is unpacked to: `./a.jpg` and `/a.jpg` are both `a.jpg`."""
    return posixpath.normpath(name.lstrip("/"))


def _open_tar(file: Any) -> Any:
    return tarfile.open(fileobj=file, mode="r:")


def _open(path: Path | str) -> Any:
    if isinstance(path, Path):
        return path.open("rb")
    filesystem, inner = open_filesystem(path)
    return filesystem.open(inner, "rb")
