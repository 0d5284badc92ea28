"""Captions a stream of images, from files or from memory, without a table and without a feature store.

Groups of images are encoded and captioned together, so that any number of images, also from a generator, needs little
memory. A file gets the same caption as from `caption_folder`: its features are rounded as in a store.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from array_api_compat import is_torch_array
from PIL import Image

from captionmill.data.errors import ImageError, InputError
from captionmill.data.features.file import Features
from captionmill.data.features.rows import mean_views
from captionmill.data.images.decode import Pixels, pixels_of
from captionmill.data.images.keys import FileFinder
from captionmill.data.images.read import ImageFile
from captionmill.data.paths import AnyPath, AnyPaths, as_location, as_path
from captionmill.pipeline.captioning.flags import find_flags, usual_low_confidence
from captionmill.stages.decoding.captioner import Captioner, decode_rows
from captionmill.stages.encoding.encoder import Encoder, encoder_for_spec
from captionmill.stages.encoding.engine import Engine, build_engine, encode_batches
from captionmill.stages.encoding.loader import Batch, load_batches, prepare_pixels
from captionmill.stages.machine import choose_workers, limit_memory
from captionmill.stages.settings import ExtractConfig, SearchConfig
from captionmill.stages.table_settings import TableConfig

if TYPE_CHECKING:
    from torch import Tensor

AnyImage: TypeAlias = "AnyPath | bytes | bytearray | BinaryIO | Image.Image | npt.NDArray[np.uint8] | Tensor"
"""A file or its URL, the bytes of a file, a file that is open for reading bytes, a Pillow image, or an array or tensor:
[H, W, 3] uint8 RGB or [H, W] uint8 grey.
"""
_Content = bytes | bytearray | memoryview


@dataclass(frozen=True)
class CaptionedImage:
    """One image with its caption, or with the reason why it has none."""

    name: str
    """The path or URL as given; for an image in memory its number in the order given, from 0."""
    text: str
    """The caption; "" if the image cannot be read."""
    confidence: float | None
    """How sure the model is (`Caption.confidence`), 0 to 1; None if the image cannot be read."""
    flags: tuple[str, ...] = ()
    """Flags of a suspicious caption, as `find_flags` returns them."""
    alternatives: tuple[str, ...] = ()
    """The next best captions, best first, if `search` has `alternatives`."""
    error: str = ""
    """Why the image cannot be read; "" if it has a caption."""


def caption_images(
    images: "AnyImage | Iterable[AnyImage]",
    model: AnyPaths | Captioner,
    search: SearchConfig = SearchConfig(),
    *,
    machine: ExtractConfig = ExtractConfig(),
    weights: AnyPath | None = None,
    low_confidence: float | None = None,
    group_size: int = 128,
) -> Iterator[CaptionedImage]:
    """The caption of each of `images` (or of one image), in the order given, as an iterator.

    `images` may be any iterable; `group_size` of them are captioned together, and no more are in memory. Files and
    bytes are decoded on threads. Arrays and Pillow images are prepared when they are taken, and may be changed after
    that. The EXIF orientation is applied; for a Pillow image it is read from its `info`.

    An input that cannot be read or is not an image has the reason in `error`; the others are captioned even then.
    Several folders in `model` form an ensemble. Each call loads the networks, so make one call for many images.
    `machine`, `weights` and `low_confidence` are as for `caption_folder`. Sampled captions depend on an image's number,
    in `caption_folder` on its key.

    Raises InputError, ModelError, WeightsError or SpecMismatchError, at once, if the model or its network cannot be
    used.
    """
    if group_size < 1:
        raise InputError(f"`group_size` must be at least 1, not {group_size}")
    captioner = model if isinstance(model, Captioner) else Captioner.load(model, device=machine.device)
    search = captioner.fit_search(search)
    low_confidence = TableConfig(low_confidence=low_confidence).low_confidence
    if low_confidence is None:
        low_confidence = usual_low_confidence(captioner.bundles, search)
    encoder = encoder_for_spec(captioner.spec, machine, as_path(weights))
    groups = _encode_groups(_each(images), group_size, encoder, build_engine(encoder, machine), machine)
    return _caption_groups(groups, captioner, search, low_confidence)


@dataclass(frozen=True)
class _Group:
    """A group of images: the features of each, or the reason why it cannot be read, by its number as key."""

    names: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Features] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def position(self, key: str) -> int:
        """The number of the image."""
        return int(key)

    def read(self, positions: Sequence[int]) -> Features:
        """The features of the images with these numbers, [len(positions), D]."""
        return np.stack([self.rows[str(number)] for number in positions])


def _each(images: "AnyImage | Iterable[AnyImage]") -> Iterator[AnyImage]:
    """Each image; a single image counts as one image, not as an iterable of letters, bytes, lines or rows."""
    if isinstance(images, Path | str | _Content | Image.Image) or hasattr(images, "read"):
        return iter((cast(AnyImage, images),))
    if (isinstance(images, np.ndarray) or is_torch_array(images)) and images.ndim in (2, 3):
        return iter((images,))
    if not isinstance(images, Iterable):
        raise InputError(f"{type(images).__name__}: neither an image nor a series of images")
    return iter(images)


def _encode_groups(
    images: Iterator[AnyImage], group_size: int, encoder: Encoder, engine: Engine, machine: ExtractConfig
) -> Iterator[_Group]:
    """The encoded images in groups of `group_size`."""
    numbered = enumerate(images)
    workers = choose_workers(machine.workers)
    limit_memory(machine.memory)
    finder = FileFinder(Path())
    while True:
        group = _Group()
        files: list[ImageFile] = []
        in_memory: list[tuple[str, Pixels]] = []
        for number, image in itertools.islice(numbered, group_size):
            key = str(number)
            group.names[key] = str(image) if isinstance(image, Path | str) else key
            try:
                if isinstance(image, Path | str):
                    files.append(_file_of(key, image, finder))
                elif isinstance(image, _Content) or hasattr(image, "read"):
                    files.append(ImageFile(key, Path(), content=_content_of(image)))
                else:
                    in_memory.append((key, _prepare(image, encoder)))
            except ImageError as exc:
                group.reasons[key] = str(exc)
        if not group.names:
            return
        loaded = load_batches(
            files, encoder.prepare, least_size=encoder.least_size, batch_size=engine.batch_size, workers=workers
        )
        for batch, rows in encode_batches(engine, itertools.chain(_batches_of(in_memory, engine.batch_size), loaded)):
            group.reasons.update((failure.key, failure.reason) for failure in batch.failures)
            stored = mean_views(rows.astype(np.dtype(machine.dtype)), encoder.spec.view_count)
            group.rows.update(zip(batch.keys, stored, strict=True))
        yield group


def _file_of(key: str, image: AnyPath, finder: FileFinder) -> ImageFile:
    """The file or URL `image`, which may be a key from a table of captions."""
    location = as_location(image)
    return ImageFile(key, location if isinstance(location, str) else finder.find(str(location)))


def _content_of(image: Any) -> bytes:
    """The bytes of a file's content, or of what is left of an open file; ImageError if that gives no bytes."""
    if not isinstance(image, _Content):
        try:
            image = image.read()
        except (OSError, ValueError) as exc:  # closed, or not open for reading
            raise ImageError(f"a file that cannot be read ({exc})") from exc
    if not isinstance(image, _Content):
        raise ImageError("a file that is open as text; open it with mode 'rb'")
    return bytes(image)


def _prepare(image: object, encoder: Encoder) -> Pixels:
    """A copy of the pixels of an image in memory, prepared for the network; ImageError if it is not an image."""
    pixels = pixels_of(image) if isinstance(image, Image.Image) else _pixels_of_array(image)
    return np.array(prepare_pixels(pixels, encoder.prepare))


def _pixels_of_array(array: object) -> Pixels:
    """The pixels [H, W, 3] uint8 of such an array or tensor, or of a grey one, [H, W]."""
    if is_torch_array(array):
        tensor: Any = array
        tensor = tensor.detach().to("cpu", copy=True)
        array = tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()
    if not isinstance(array, np.ndarray):
        raise ImageError(f"{type(array).__name__}: not a path, bytes, a Pillow image or an array")
    is_grey = array.ndim == 2
    if array.dtype != np.uint8 or not (is_grey or (array.ndim == 3 and array.shape[2] == 3)):
        shape = ", ".join(map(str, array.shape))
        raise ImageError(f"an array of {array.dtype} [{shape}]; it must be uint8 [H, W, 3] or [H, W]")
    if not array.size:
        raise ImageError("an image without pixels")
    return np.repeat(array[:, :, np.newaxis], 3, axis=2) if is_grey else array


def _batches_of(in_memory: Sequence[tuple[str, Pixels]], batch_size: int) -> Iterator[Batch]:
    """Batches of at most `batch_size` images of one shape."""
    by_shape: dict[tuple[int, ...], list[tuple[str, Pixels]]] = {}
    for key, pixels in in_memory:
        by_shape.setdefault(pixels.shape, []).append((key, pixels))
    for same_shape in by_shape.values():
        for start in range(0, len(same_shape), batch_size):
            keys, pixels_of_each = zip(*same_shape[start : start + batch_size], strict=True)
            yield Batch(list(keys), list(pixels_of_each))


def _caption_groups(
    groups: Iterable[_Group], captioner: Captioner, search: SearchConfig, low_confidence: float | None
) -> Iterator[CaptionedImage]:
    finder = captioner.finder(search)
    for group in groups:
        readable = [key for key in group.names if key in group.rows]
        captions = dict(decode_rows(finder, group, readable))
        for key, name in group.names.items():
            if (caption := captions.get(key)) is None:
                yield CaptionedImage(name, "", None, error=group.reasons[key])
                continue
            alternatives = tuple(alternative.text for alternative in caption.alternatives)
            flags = find_flags(caption, low_confidence)
            yield CaptionedImage(name, caption.text, caption.confidence, flags, alternatives)
