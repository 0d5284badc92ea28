"""Fingerprints, which show whether a file, a folder of images, a store or a model has changed.

A fingerprint has two halves. The quick half covers names, sizes and times: while it is the same, nothing is read. If it
differs, the content decides, so a file that was touched, copied or checked out again counts as unchanged.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.captions.formats.text_files import find_text_files
from captionmill.data.errors import ImageError, PipelineError, StoreError
from captionmill.data.features.parts import part_paths
from captionmill.data.features.store import FeatureStore, store_exists
from captionmill.data.images.find import find_images
from captionmill.data.images.formats.kinds import ALL_IMAGE_SUFFIXES
from captionmill.data.images.read import ImageFile, ImageSource, is_unchanged, read_image
from captionmill.data.images.tar import TAR_SUFFIX
from captionmill.data.images.walk import walk_folder
from captionmill.data.models.bundle import BUNDLE_NAME, is_weights_name, model_exists
from captionmill.data.regular import open_regular

_SUFFIXES = frozenset(suffix.removeprefix(".") for suffix in (*ALL_IMAGE_SUFFIXES, TAR_SUFFIX))


@dataclass(frozen=True)
class Images:
    """Images as `extract` takes them, and the store made from them, which holds the hash of each image read."""

    location: Path | str
    store: Path


@dataclass(frozen=True)
class TextFiles:
    """A folder of text files that hold the captions of images."""

    folder: Path


Input = Path | Images | TextFiles


@dataclass(frozen=True)
class Fingerprint:
    """Texts that change when the content does."""

    quick: str
    """Of names, sizes and times; the same as long as the files are not touched."""
    content: str
    """Of the content itself."""


def take_fingerprint(source: Input, known: Fingerprint | None = None) -> Fingerprint:
    """The current fingerprint of `source`; `known` itself if its quick half has not changed.

    Raises PipelineError if it is not there or cannot be read, InputError for a folder without images.
    """
    with _input_named(source):
        statuses, contents = _halves(source, known)
        quick = _hash_lines(statuses)
        return known if known is not None and quick == known.quick else Fingerprint(quick, contents())


def glance_at(images: Images) -> Fingerprint:
    """Only the quick half, for images whose store does not exist yet; `settle` adds the other without reading."""
    with _input_named(images):
        return Fingerprint(_hash_lines(_image_statuses(images.location)), "")


def settle(images: Images, before: Fingerprint) -> Fingerprint:
    """The fingerprint of images whose store was made since `before`; equal to no other if they changed meanwhile."""
    now = glance_at(images)
    return take_fingerprint(images) if now.quick == before.quick else Fingerprint("", "changed meanwhile")


def is_store(path: Path) -> bool:
    """Whether a feature store is at `path`, finished or not."""
    return path.suffix == ".h5" and store_exists(path)


def output_exists(path: Path) -> bool:
    """Whether a stage has left anything at `path`."""
    return model_exists(path) if path.is_dir() else path.exists() or is_store(path)


@contextmanager
def _input_named(source: Input) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        where = source.location if isinstance(source, Images) else getattr(source, "folder", source)
        reason = "is not there" if isinstance(exc, FileNotFoundError) else f"cannot be read ({exc.strerror or exc})"
        raise PipelineError(f"{where}: {reason}") from exc


def _halves(source: Input, known: Fingerprint | None) -> tuple[Iterator[str], Callable[[], str]]:
    """The lines of the quick half, and a function that returns the other half."""
    if isinstance(source, Images):
        return _image_statuses(source.location), functools.partial(_hash_images, source, known)
    if isinstance(source, TextFiles):
        texts = find_text_files(source.folder)[0]
        names = [path.relative_to(source.folder).as_posix() for path in texts]
        statuses = (_status(name, path.stat()) for name, path in zip(names, texts, strict=True))
        return statuses, lambda: _hash_lines(
            f"{name}\0{_hash_file(path)}" for name, path in zip(names, texts, strict=True)
        )
    if source.is_dir():
        return _statuses([source / BUNDLE_NAME, *_weights_in(source)]), functools.partial(_hash_model, source)
    if is_store(source):
        return _statuses([source, *part_paths(source)]), lambda: FeatureStore.open(source).digest().hex()
    if source.exists() and not source.is_file():
        raise PipelineError(
            f"{source}: is a pipe or device, and a pipeline reads its inputs more than once; save a file"
        )
    return _statuses([source]), functools.partial(_hash_file, source)


def _hash_lines(lines: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _status(name: str, status: os.stat_result) -> str:
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}"


def _statuses(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        if path.exists() or len(paths) == 1:  # a store may consist of parts only
            yield _status(path.name, path.stat())


def _image_statuses(location: Path | str) -> Iterator[str]:
    """One line per image, without opening any; takes a second for a folder of 100,000."""
    if isinstance(location, Path) and location.is_dir():
        yield from _folder_statuses(location)
    elif isinstance(location, Path) and location.suffix.lower() == TAR_SUFFIX:
        yield from _statuses([location])
    else:
        for image in find_images(location):
            if isinstance(image.path, str) or image.offset is not None:
                yield f"{image.key}\0{image.size}\0{image.modified_ns}"
            else:
                yield _status(image.key, image.path.stat()) if image.path.exists() else image.key


def _folder_statuses(folder: Path) -> Iterator[str]:
    start = len(str(folder).rstrip(os.sep)) + 1
    for entry, error in walk_folder(folder):
        name = entry.path[start:].replace(os.sep, "/")
        if error:
            yield name
        elif entry.name.rpartition(".")[2].lower() in _SUFFIXES or "." not in entry.name:
            try:
                yield _status(name, entry.stat())
            except OSError:  # a link to nothing or to itself
                yield name


def _hash_images(images: Images, known: Fingerprint | None) -> str:
    """Their count and the hash of keys and contents; only images that are new or touched since the extraction are read.

    If already the count differs from the `known` one, nothing is read.
    """
    found = find_images(images.location)
    count = f"{len(found)} images"
    if known is not None and known.content.split(":")[0] != count:
        return count
    source_of = _known_sources(images.store)
    lines = (f"{image.key}\0{_content_hash(image, source_of(image.key))}" for image in found)
    return f"{count}: {_hash_lines(lines)}"


def _known_sources(path: Path) -> Callable[[str], ImageSource | None]:
    try:
        store = FeatureStore.open(path)
    except StoreError:
        return lambda key: None
    sources = store.sources()
    return lambda key: ImageSource(*sources[store.position(key)].tolist()) if key in store else None


def _content_hash(image: ImageFile, known: ImageSource | None) -> int | str:
    if known is not None and is_unchanged(image, known):
        return known.content_hash
    try:
        return read_image(image)[1].content_hash
    except ImageError as exc:
        return str(exc)


def _hash_model(folder: Path) -> str:
    """The hash of the bundle, which holds the hash of its weights, and of the names of the weights that are there."""
    weights = (path.name for path in _weights_in(folder))
    return _hash_lines(iter([_hash_file(folder / BUNDLE_NAME), *weights]))


def _weights_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if is_weights_name(path.name))


def _hash_file(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
