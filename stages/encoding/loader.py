"""Reads and prepares images on threads, ahead of the network, with bounded memory.

Threads are enough: libjpeg, Pillow and the file system release the interpreter lock, and nothing must be pickled.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from captionmill.data.errors import ImageError
from captionmill.data.images.decode import Pixels, decode_pixels
from captionmill.data.images.memory import BUDGET
from captionmill.data.images.read import ImageFile, ImageSource, read_image
from captionmill.stages.machine import is_out_of_memory

Prepare = Callable[[Pixels], Pixels]
LeastSize = Callable[[int, int], tuple[int, int]]

_WAITING_BATCHES = 8  # at most so many batches of images wait for others of their shape
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

    @property
    def pixels(self) -> Pixels:
        """[B, H, W, 3]."""
        return np.stack(self.images)


class _Loaded(NamedTuple):
    pixels: Pixels | None
    source: ImageSource | None
    reason: str
    read_s: float
    decode_s: float


def load_batches(
    images: Sequence[ImageFile], prepare: Prepare, *, least_size: LeastSize, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Batches of `batch_size` readable images of one shape, each shape in the given order; with the failures.

    The last batch of a shape may be smaller; so may the oldest batch when too many images wait. `prepare` turns an RGB
    image into the network's input, [H, W, 3]; `least_size` returns the size to which it resizes an image of (width,
    height).
    """
    ahead = 2 * batch_size + 2 * workers
    if any(isinstance(image.path, str) for image in images):
        workers *= _THREADS_PER_REMOTE_WORKER
    waiting: dict[tuple[int, ...], Batch] = {}
    extras = Batch()  # failures and seconds for the next batch
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        pending: deque[tuple[str, Future[_Loaded]]] = deque()
        remaining = iter(images)
        try:
            while True:
                while len(pending) < ahead and (image := next(remaining, None)) is not None:
                    pending.append((image.key, pool.submit(_load, image, prepare, least_size)))
                if not pending:
                    break
                key, future = pending.popleft()
                loaded = future.result()
                extras.read_s += loaded.read_s
                extras.decode_s += loaded.decode_s
                if loaded.pixels is None or loaded.source is None:
                    extras.failures.append(Failure(key, loaded.reason, was_read=loaded.source is not None))
                    continue
                shape = loaded.pixels.shape
                batch = waiting.setdefault(shape, Batch())
                batch.keys.append(key)
                batch.images.append(loaded.pixels)
                batch.sources.append(loaded.source)
                if len(batch.keys) < batch_size:
                    if sum(len(others.keys) for others in waiting.values()) < _WAITING_BATCHES * batch_size:
                        continue
                    shape = next(iter(waiting))  # dicts keep their order: this one has waited longest
                yield _with(waiting.pop(shape), extras)
                extras = Batch()
        finally:
            for _, future in pending:
                future.cancel()
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


@BUDGET.one_image()
def _load(image: ImageFile, prepare: Prepare, least_size: LeastSize) -> _Loaded:
    started = time.perf_counter()
    try:
        data, source = read_image(image)
    except ImageError as exc:
        return _Loaded(None, None, str(exc), time.perf_counter() - started, 0.0)
    read = time.perf_counter()
    pixels, reason = None, ""
    try:
        pixels = prepare_pixels(decode_pixels(data, at_least=least_size, name=image.key), prepare)
    except ImageError as exc:
        reason = str(exc)
    return _Loaded(pixels, source, reason, read - started, time.perf_counter() - read)


def prepare_pixels(pixels: Pixels, prepare: Prepare) -> Pixels:
    """What `prepare` makes of an RGB image, both [H, W, 3]; ImageError if there is too little memory for it."""
    try:
        return prepare(pixels)
    except (RuntimeError, MemoryError) as exc:
        if not is_out_of_memory(exc):
            raise
        raise ImageError("not enough memory to resize it") from exc
