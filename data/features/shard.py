"""The piece of a list of images that one task of an array job processes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from captionmill.data.errors import InputError
from captionmill.data.foreign import record_of
from captionmill.data.urls import is_url

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Piece `index` of `count` of a sorted list of images."""

    index: int
    """1 to `count`."""
    count: int
    list_sha256: str
    """Hexadecimal SHA-256 over the keys of the whole list: shards of different lists do not belong together."""
    images: int
    """Images of this shard."""
    failed: int = 0
    """Images of this shard that could not be read."""

    @classmethod
    def from_json(cls, values: Any) -> "Shard":
        """The shard with these fields; TypeError or ValueError if they are not those of one."""
        shard = record_of(cls, values)
        if not 1 <= shard.index <= shard.count:
            raise ValueError(f"shard {shard.index} of {shard.count}")
        return shard

    @classmethod
    def of(cls, keys: Sequence[str], index: int, count: int) -> "Shard":
        """Shard `index` of `count` of the images with the sorted `keys`; InputError unless it is from 1 to `count`."""
        if not 1 <= index <= count:
            raise InputError(f"`shard` must be (I, N) with I from 1 to N, not ({index}, {count})")
        digest = hashlib.sha256("\n".join(keys).encode())
        return cls(index, count, digest.hexdigest(), len(shard_of(keys, index, count)))


def shard_of(items: Sequence[T], index: int, count: int) -> Sequence[T]:
    """Piece `index` (from 1) of `count` of `items`: consecutive ones; the sizes of pieces differ by at most one."""
    return items[len(items) * (index - 1) // count : len(items) * index // count]


def shard_path(output: Path | str, index: int, count: int) -> Path | str:
    """The path of shard `index` of `count` of the store `output`: features-00002-of-00008.h5."""
    folder, slash, name = str(output).rpartition("/")
    stem, dot, suffix = name.rpartition(".") if "." in name else (name, "", "")
    named = f"{folder}{slash}{stem}-{index:05d}-of-{count:05d}{dot}{suffix}"
    return named if is_url(output) else Path(named)
