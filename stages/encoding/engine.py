"""Runs an encoder's network fast on this machine: batches of uint8 images in, rows of features out."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from captionmill.data.errors import InputError
from captionmill.data.features.file import Features
from captionmill.data.images.decode import Pixels
from captionmill.data.optional import missing_packages
from captionmill.stages.encoding.encoder import Encoder
from captionmill.stages.encoding.loader import Batch
from captionmill.stages.machine import NO_GPU_DECODING, choose_device, is_out_of_memory, means_cpu, require_machine
from captionmill.stages.settings import ExtractConfig

if TYPE_CHECKING:
    from captionmill.stages.encoding.engines.jpegs import JpegDecoder

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Runs one network on one device, in batches of one size: a row does not depend on the rest of its batch."""

    description: str
    """Device, engine and precision, for people: "cpu openvino bfloat16"."""
    depth: int
    """Number of batches to keep in flight."""
    batch_size: int
    """Images per forward pass; smaller batches are padded. May be lowered between two calls of `submit`."""

    def submit(self, images: Sequence[Pixels]) -> Callable[[], Features]:
        """Start on B uint8 images [H, W, 3] of one shape, 1 to `batch_size`; the result waits for their rows [B, VD].

        They must not change until then: an engine may read them where they lie.
        """


def build_engine(encoder: Encoder, config: ExtractConfig) -> Engine:
    """The engine that `config` names for `encoder`; InputError if this machine lacks the device or the package."""
    require_machine(config)
    device = "cpu" if means_cpu(config.device) else choose_device(config.device).type
    has_openvino = not missing_packages("openvino")
    if config.engine == "openvino" and device != "cpu":
        raise InputError(f"`engine` openvino runs on the CPU: pass `device` cpu, or `engine` torch for {device}")
    if config.engine == "openvino" and not has_openvino:
        raise InputError("`engine` openvino: the package is not installed; pip install openvino, or use `engine` torch")
    use_openvino = device == "cpu" and has_openvino and config.engine != "torch" and not config.compile
    if config.engine == "auto" and device == "cpu" and not has_openvino:
        _logger.warning("openvino is not installed: torch runs the network, noticeably slower on a CPU")
    engine: Engine
    if use_openvino:
        from captionmill.stages.encoding.engines.openvino import OpenVinoEngine

        engine = OpenVinoEngine(encoder, config)
    else:
        from captionmill.stages.encoding.engines.torch import TorchEngine

        engine = TorchEngine(encoder, config)
    return engine if encoder.spec.views == "one" else _ViewsEngine(engine, encoder)


def build_jpeg_decoder(encoder: Encoder, config: ExtractConfig) -> "JpegDecoder | None":
    """What decodes JPEGs on the GPU, if `config` asks for it; InputError if there is none, or it cannot."""
    if config.decode == "cpu":
        return None
    device = choose_device(config.device)
    if device.type != "cuda":
        raise InputError(NO_GPU_DECODING)
    from captionmill.stages.encoding.engines.jpegs import JpegDecoder

    return JpegDecoder(encoder, device)


def encode_batches(engine: Engine, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Features]]:
    """Each batch with its rows, in order; several are in flight at once. A batch without images has no rows.

    When memory runs out, the batch size is halved for the rest of the run. Raises InputError if even one image is too
    large.
    """
    under_way: deque[tuple[Batch, Callable[[], Features]]] = deque()
    for batch in batches:
        under_way.append((batch, _begin(engine, batch)))
        if len(under_way) >= engine.depth:
            first, wait = under_way.popleft()
            yield first, wait()
    for first, wait in under_way:
        yield first, wait()


def _begin(engine: Engine, batch: Batch) -> Callable[[], Features]:
    if not batch.keys:
        return lambda: np.empty((0, 0), np.float32)
    images, size = batch.images, engine.batch_size
    if len(images) > size:  # it was lowered since the batch was made
        return lambda: _encode_split(engine, images)
    wait = _unless_out_of_memory(lambda: engine.submit(images))

    def rows() -> Features:
        found = _unless_out_of_memory(wait) if wait else None
        return _encode_split(engine, images, too_large=size) if found is None else found

    return rows


def _unless_out_of_memory(work: Callable[[], T]) -> T | None:
    """The result of `work`; None if memory runs out."""
    try:
        return work()
    except (RuntimeError, MemoryError) as exc:
        if not is_out_of_memory(exc):
            raise
    return None


def _encode_split(engine: Engine, images: Sequence[Pixels], *, too_large: int | None = None) -> Features:
    """The rows of a batch, computed in smaller batches; `too_large` images at once do not fit in memory."""
    if too_large == 1:
        raise InputError("not enough memory for one image: use a smaller `image_size` or another `device`")
    if too_large is not None and engine.batch_size >= too_large:
        engine.batch_size = too_large // 2
        _logger.warning("not enough memory: continuing with `batch_size` %d", engine.batch_size)
    size = engine.batch_size
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    rows = _unless_out_of_memory(lambda: [engine.submit(part)() for part in parts])
    return _encode_split(engine, images, too_large=size) if rows is None else np.concatenate(rows)


class _ViewsEngine:
    """The features of an image, its mirror image and its crops, one after the other; for "flip", the mean."""

    def __init__(self, engine: Engine, encoder: Encoder) -> None:
        self._engine, self._crop_count, self._is_mean = engine, encoder.crop_count, encoder.spec.views == "flip"
        self.description = f"{engine.description}, {max(2, encoder.spec.view_count)} views"
        self.depth = engine.depth

    @property
    def batch_size(self) -> int:
        return self._engine.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._engine.batch_size = value

    def submit(self, images: Sequence[Pixels]) -> Callable[[], Features]:
        parts = [np.split(image, self._crop_count) for image in images]
        first, *crops = ([part[number] for part in parts] for number in range(self._crop_count))
        waits = [self._engine.submit(view) for view in (first, [image[:, ::-1] for image in first], *crops)]
        if self._is_mean:
            return lambda: (waits[0]() + waits[1]()) / 2
        return lambda: np.concatenate([wait() for wait in waits], axis=1)  # [B, VD]
