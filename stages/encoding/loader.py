"""Reads and prepares images on threads, ahead of the network, with bounded memory.

Threads are enough: libjpeg, Pillow and the file system release the interpreter lock, and nothing must be pickled.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from captionmill.data.errors import ImageError
from captionmill.data.images.decode import Pixels, check_pixels, decode_pixels
from captionmill.data.images.formats.jpeg import CheckedJpeg
from captionmill.data.images.memory import BUDGET
from captionmill.data.images.read import ImageFile, ImageSource, read_image
from captionmill.stages.ahead import map_ahead
from captionmill.stages.machine import is_out_of_memory

Prepare = Callable[[Pixels], Pixels]
LeastSize = Callable[[int, int], tuple[int, int]]
PrepareJpegs = Callable[[Sequence[CheckedJpeg]], list[Pixels | None]]
"""Decodes and prepares JPEGs elsewhere; None for one that it refuses."""

_WAITING_BATCHES = 8  # at most so many batches of images wait for others of their shape
_JPEGS_AT_ONCE = 64  # that are decoded elsewhere, in one call
_SKIPPED = 64  # images that are tried one after the other before a network is built
_THREADS_PER_REMOTE_WORKER = 8  # a thread that waits for a server needs no core


@dataclass(frozen=True)
class Failure:
    """An image that could not be read."""

    key: str
    reason: str
    was_read: bool = False
    """The file could be read, but is not (or no longer) an image."""


@dataclass
class Batch:
    """Images of one shape that were read, and failures of images that could not be read."""

    keys: list[str] = field(default_factory=list)
    images: list[Pixels] = field(default_factory=list)
    sources: list[ImageSource] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    read_s: float = 0.0
    """Seconds that the threads spent on reading bytes since the previous batch."""
    decode_s: float = 0.0
    """Seconds that the threads spent on decoding and resizing since the previous batch."""


class _Loaded(NamedTuple):
    key: str
    pixels: Pixels | None
    source: ImageSource | None
    reason: str
    read_s: float
    decode_s: float
    jpeg: CheckedJpeg | None = None
    """The image, if something else will decode it."""


def load_batches(
    images: Sequence[ImageFile],
    prepare: Prepare,
    *,
    least_size: LeastSize,
    batch_size: int,
    workers: int,
    prepare_jpegs: PrepareJpegs | None = None,
) -> Iterator[Batch]:
    """Batches of `batch_size` readable images of one shape, each shape in the given order; with the failures.

    The last batch of a shape may be smaller; so may the oldest batch when too many images wait. `prepare` turns an RGB
    image into the network's input, [H, W, 3]; `least_size` returns the size to which it resizes an image of (width,
    height). `prepare_jpegs` gets the JPEGs that `check_pixels` returns; those that it refuses are decoded here.
    """
    ahead = 2 * batch_size + 2 * workers + (_JPEGS_AT_ONCE if prepare_jpegs else 0)
    load = partial(_load, prepare=prepare, least_size=least_size, is_checked_only=prepare_jpegs is not None)
    if any(isinstance(image.path, str) for image in images):
        workers *= _THREADS_PER_REMOTE_WORKER
    waiting: dict[tuple[int, ...], Batch] = {}
    extras = Batch()  # failures and seconds for the next batch
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool,
        closing(map_ahead(load, images, pool, ahead)) as loaded_images,
    ):
        in_order: Iterator[_Loaded] = loaded_images
        if prepare_jpegs is not None:
            again = partial(_decode_again, prepare=prepare, least_size=least_size)
            in_order = _prepare_in_groups(loaded_images, prepare_jpegs, lambda refused: pool.map(again, refused))
        for loaded in in_order:
            extras.read_s += loaded.read_s
            extras.decode_s += loaded.decode_s
            if loaded.pixels is None or loaded.source is None:
                extras.failures.append(Failure(loaded.key, loaded.reason, was_read=loaded.source is not None))
                continue
            shape = loaded.pixels.shape
            batch = waiting.setdefault(shape, Batch())
            batch.keys.append(loaded.key)
            batch.images.append(loaded.pixels)
            batch.sources.append(loaded.source)
            if len(batch.keys) < batch_size:
                if sum(len(others.keys) for others in waiting.values()) < _WAITING_BATCHES * batch_size:
                    continue
                shape = next(iter(waiting))  # dicts keep their order: this one has waited longest
            yield _with(waiting.pop(shape), extras)
            extras = Batch()
    for batch in waiting.values():
        yield _with(batch, extras)
        extras = Batch()
    if extras.failures or extras.read_s:
        yield extras


def skip_unreadable(
    images: Sequence[ImageFile], *, least_size: LeastSize
) -> tuple[tuple[Failure, ...], Sequence[ImageFile]]:
    """The failures of the images that `images` begins with, at most _SKIPPED of them, and the images after these.

    Where only unreadable images are left, no network is needed to find it out. Remote images are not tried here.
    """
    failures = []
    for image in images[:_SKIPPED]:
        if (
            isinstance(image.path, str)
            or (loaded := _load(image, lambda pixels: pixels, least_size)).pixels is not None
        ):
            break
        failures.append(Failure(image.key, loaded.reason, was_read=loaded.source is not None))
    return tuple(failures), images[len(failures) :]


def _with(batch: Batch, extras: Batch) -> Batch:
    batch.failures, batch.read_s, batch.decode_s = extras.failures, extras.read_s, extras.decode_s
    return batch


def _prepare_in_groups(
    loaded_images: Iterator[_Loaded],
    prepare_jpegs: PrepareJpegs,
    decode_again: Callable[[Iterable[_Loaded]], Iterator[_Loaded]],
) -> Iterator[_Loaded]:
    """`loaded_images` in the same order, their JPEGs prepared; `decode_again` gets those that are refused."""
    while group := list(itertools.islice(loaded_images, _JPEGS_AT_ONCE)):
        jpegs = [loaded.jpeg for loaded in group if loaded.jpeg]
        prepared = iter(prepare_jpegs(jpegs) if jpegs else [])
        group = [loaded._replace(pixels=next(prepared)) if loaded.jpeg else loaded for loaded in group]
        is_refused = [loaded.jpeg is not None and loaded.pixels is None for loaded in group]
        decoded = decode_again(itertools.compress(group, is_refused))
        for loaded, refused in zip(group, is_refused, strict=True):
            yield next(decoded) if refused else loaded


def _decode_again(loaded: _Loaded, prepare: Prepare, least_size: LeastSize) -> _Loaded:
    started = time.perf_counter()
    assert loaded.jpeg is not None
    pixels, reason = _decode(loaded.key, loaded.jpeg.data, prepare, least_size)
    seconds = loaded.decode_s + time.perf_counter() - started
    return loaded._replace(pixels=pixels, reason=reason, decode_s=seconds)


@BUDGET.one_image()
def _load(image: ImageFile, prepare: Prepare, least_size: LeastSize, *, is_checked_only: bool = False) -> _Loaded:
    """The image, prepared; `is_checked_only`: not prepared, if it is a JPEG that may be decoded elsewhere."""
    started = time.perf_counter()
    try:
        data, source = read_image(image)
    except ImageError as exc:
        return _Loaded(image.key, None, None, str(exc), time.perf_counter() - started, 0.0)
    read = time.perf_counter()
    jpeg = check_pixels(data, at_least=least_size) if is_checked_only else None
    pixels, reason = (None, "") if jpeg else _decode(image.key, data, prepare, least_size)
    return _Loaded(image.key, pixels, source, reason, read - started, time.perf_counter() - read, jpeg)


def _decode(key: str, data: bytes, prepare: Prepare, least_size: LeastSize) -> tuple[Pixels | None, str]:
    """The prepared pixels of a file, or None and the reason why there are none."""
    try:
        return prepare_pixels(decode_pixels(data, at_least=least_size, name=key), prepare), ""
    except ImageError as exc:
        return None, str(exc)


def prepare_pixels(pixels: Pixels, prepare: Prepare) -> Pixels:
    """What `prepare` makes of an RGB image, both [H, W, 3]; ImageError if there is too little memory for it."""
    try:
        return prepare(pixels)
    except (RuntimeError, MemoryError) as exc:
        if not is_out_of_memory(exc):
            raise
        raise ImageError("not enough memory to resize it") from exc
