"""Captions back into tars: a copy of each shard with a text or JSON member behind each image that has a caption.

A shard appears under its name when it is complete, and a run that was interrupted resumes with the first shard that is
not. The input is only read.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from captionmill.data.errors import InputError
from captionmill.data.files import replace_atomically
from captionmill.data.images.keys import image_key
from captionmill.data.images.read import ImageFile
from captionmill.data.images.tar import TarMember, list_members
from captionmill.data.images.tar_copy import AddedFile, copy_tar, name_beside
from captionmill.data.regular import require_inside
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.wording import Wording
from captionmill.data.tables.written import WrittenTexts
from captionmill.pipeline.captioning.sidecars import is_sidecar_suffix

if TYPE_CHECKING:
    from captionmill.data.progress import Progress


@dataclass(frozen=True)
class ShardSummary:
    """The result for the shards."""

    written: int
    as_before: int
    """Shards that were up to date."""


@dataclass
class _TarCopy:
    """One tar and its copy."""

    source: Path | str
    name: str
    """Of the copy, below the folder of all copies."""
    target: Path
    images: dict[str, ImageFile]
    """By key."""
    members: dict[str, str]
    """The name of the member of each of them."""


class Shards:
    """The copies of all tars among the images."""

    def __init__(
        self,
        images: object,
        found: Sequence[ImageFile],
        folder: Path,
        suffix: str,
        table: Path,
        *,
        wording: Wording,
        overwrite: bool,
    ) -> None:
        """For the images `found` under `images`, into `folder`; the new members have the suffix `suffix`.

        Raises InputError if no image is in a tar, the copies would be among the images, two of them would have one
        name, a member has the name of a new one already, or, without `overwrite`, a file is there that no run into
        `table` wrote.
        """
        if not is_sidecar_suffix(suffix):
            raise InputError(f"`tar_suffix` {suffix}: must be the suffix of a text file, such as .txt or .json")
        root = images if isinstance(images, Path) and images.is_dir() else None
        if root is not None and folder.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{folder}: copies among the images would be captioned too; name another folder: `tars`")
        self._suffix, self._wording = suffix, wording
        self._written = WrittenTexts(table, "tars")
        by_tar: dict[Path | str, dict[str, ImageFile]] = defaultdict(dict)
        for image in found:
            if image.offset is not None and not image.problem:
                by_tar[image.path][image.key] = image
        if not by_tar:
            raise InputError(f"{images}: no image is in a .tar, so there is none to copy; leave out `tars`")
        self._shards: list[_TarCopy] = []
        owners: dict[Path, Path | str] = {}
        for source, inside in by_tar.items():
            below = _name_below(source, root)
            members = list_members(source)
            shard = _TarCopy(source, str(below), folder / below, inside, _member_names(members, inside))
            if (other := owners.setdefault(shard.target, source)) != source:
                raise InputError(f"`tars`: {other} and {source} would have one copy, {shard.target}; rename one")
            self._check(shard, {member.name for member in members}, table, overwrite=overwrite)
            self._shards.append(shard)
        require_inside(folder, owners)

    def _check(self, shard: _TarCopy, names: Collection[str], table: Path, *, overwrite: bool) -> None:
        """Raise InputError if the copy, with members called `names` already, cannot be written."""
        new_names: dict[str, str] = {}
        for key, member in shard.members.items():
            new_name = name_beside(member, self._suffix)
            if new_name in names:
                raise InputError(
                    f"{shard.source}: has a member {new_name} already; choose another `tar_suffix`, such as "
                    f".caption{self._suffix}"
                )
            if (other := new_names.setdefault(new_name, key)) != key:
                raise InputError(f"`tars`: {other} and {key} would share the member {new_name}; rename one of them")
        target = shard.target
        if isinstance(shard.source, Path) and os.path.realpath(target) == os.path.realpath(shard.source):
            raise InputError(f"{target}: is a tar of this command and would be overwritten; name another folder")
        if target.exists() and not overwrite and not self._written.has(shard.name, _stamp(target)):
            raise InputError(
                f"{target}: exists already and is not as a run into {table} wrote it; "
                "move it away, or pass `overwrite` to replace all such files"
            )

    def write(self, rows: Iterable[CaptionRow], *, progress: "Progress") -> ShardSummary:
        """Write the copies that are missing or not up to date."""
        written = done = 0
        with self._written.adding():
            for shard, texts in self._complete(rows):
                written += self._write_one(shard, texts)
                done += 1
                progress("tars", done, len(self._shards))
        return ShardSummary(written, done - written)

    def _complete(self, rows: Iterable[CaptionRow]) -> Iterator[tuple[_TarCopy, dict[str, AddedFile]]]:
        """Each shard with the files to add, by the names of the members, once the rows of all its images are there.

        The rows of one shard follow each other, so that the texts of one are in memory.
        """
        by_key = {key: shard for shard in self._shards for key in shard.images}
        texts: dict[str, dict[str, AddedFile]] = defaultdict(dict)
        missing = {str(shard.source): len(shard.images) for shard in self._shards}
        for row in rows:
            shard = by_key.get(row.path)
            if shard is None:
                continue
            name = str(shard.source)
            if row.is_captioned:
                texts[name][shard.members[row.path]] = AddedFile(self._suffix, self._content(row))
            missing[name] -= 1
            if not missing[name]:
                yield shard, texts.pop(name, {})

    def _content(self, row: CaptionRow) -> bytes:
        text = self._wording.text(row.caption)
        if not self._suffix.lower().endswith(".json"):
            return text.encode()
        values = {"caption": text, "confidence": row.confidence, "flags": row.flags, "status": row.status}
        return json.dumps(values, ensure_ascii=False).encode()

    def _write_one(self, shard: _TarCopy, texts: dict[str, AddedFile]) -> bool:
        """Write one copy, unless it is there; whether it was written."""
        name, wanted = shard.name, self._digest(shard, texts)
        if shard.target.exists() and self._written.has(name, wanted + _stamp(shard.target)):
            return False
        with replace_atomically(shard.target) as partial_path:
            if copy_tar(shard.source, partial_path, texts) != len(texts):
                raise InputError(f"{shard.source}: was changed while its captions were made; run again")
            for content in (_stamp(partial_path), wanted + _stamp(partial_path)):
                self._written.add(name, content)
        return True

    def _digest(self, shard: _TarCopy, texts: dict[str, AddedFile]) -> bytes:
        """SHA-256 of what the copy is made from."""
        digest = hashlib.sha256(_stamp(shard.source) if isinstance(shard.source, Path) else b"")
        for image in shard.images.values():
            digest.update(f"{image.key}\0{image.offset}\0{image.size}\0{image.modified_ns}\0".encode())
        for member, added in texts.items():
            digest.update(b"\0".join((member.encode("utf-8", "surrogateescape"), added.suffix.encode(), added.content)))
        return digest.digest()


def _stamp(path: Path) -> bytes:
    """Time and size of a file, which stay when it is renamed."""
    status = path.stat()
    return f"{status.st_mtime_ns} {status.st_size}".encode()


def _name_below(source: Path | str, root: Path | None) -> PurePosixPath:
    """The path of a tar's copy below the folder of all copies."""
    if root is not None and isinstance(source, Path) and source.is_relative_to(root):
        return PurePosixPath(source.relative_to(root).as_posix())
    return PurePosixPath(PurePosixPath(str(source)).name)


def _member_names(members: Iterable[TarMember], images: dict[str, ImageFile]) -> dict[str, str]:
    """The name of the member that each of the `images` is, by key."""
    names: dict[int, list[str]] = defaultdict(list)
    for member in members:
        names[member.offset].append(member.name)
    found = {}
    for key, image in images.items():
        for name in names[image.offset or 0]:
            if f"/{key}".endswith(f"/{image_key(name)}"):
                found[key] = name
    return found
