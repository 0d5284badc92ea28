"""Reads and prepares images on threads, ahead of the network, in order, with bounded memory.

Threads suffice: Pillow gives up the interpreter lock while it decodes and resizes, and threads have nothing to pickle.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from captionmill.data.errors import ImageError
from captionmill.data.image_source import ImageSource, read_source
from captionmill.data.images import ImageFile, load_image
from captionmill.stages.encoding.encoder import Pixels

Prepare = Callable[[Image.Image], Pixels]


@dataclass(frozen=True)
class Failure:
    """An image that could not be read."""

    key: str
    reason: str


@dataclass
class Batch:
    """Images that were read, and those among them that were not."""

    keys: list[str] = field(default_factory=list)
    squares: list[Pixels] = field(default_factory=list)
    sources: list[ImageSource] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def pixels(self) -> Pixels:
        """[B, S, S, 3]."""
        return np.stack(self.squares)


def load_batches(images: Sequence[ImageFile], prepare: Prepare, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """Batches of `batch_size` readable images in the order given (the last one smaller), failures beside them."""
    ahead = 2 * batch_size + 2 * workers
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        pending: deque[tuple[str, Future[tuple[Pixels, ImageSource]]]] = deque()
        batch = Batch()
        remaining = iter(images)
        try:
            while True:
                while len(pending) < ahead and (image := next(remaining, None)) is not None:
                    pending.append((image.key, pool.submit(_load, image, prepare)))
                if not pending:
                    break
                key, future = pending.popleft()
                try:
                    square, source = future.result()
                    batch.keys.append(key)
                    batch.squares.append(square)
                    batch.sources.append(source)
                except ImageError as exc:
                    batch.failures.append(Failure(key, str(exc)))
                if len(batch.keys) == batch_size:
                    yield batch
                    batch = Batch()
        finally:
            for _, future in pending:
                future.cancel()
        if batch.keys or batch.failures:
            yield batch


def _load(image: ImageFile, prepare: Prepare) -> tuple[Pixels, ImageSource]:
    source = read_source(image.path)  # before the pixels: a file changed in between counts as changed next time
    return prepare(load_image(image.path)), source
