"""What is captioned: a feature store that is there, or images, of which the missing features are extracted first."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from captionmill.data.captions.journal import SourceChecksums
from captionmill.data.errors import InputError
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore, delete_store, store_exists
from captionmill.data.features.writer import lock_store
from captionmill.data.images.read import ImageFile
from captionmill.data.paths import AnyPath, as_path
from captionmill.data.progress import Progress
from captionmill.stages.encoding.encoder import encoder_for_spec
from captionmill.stages.encoding.extract import ExtractSummary, extract_images, find_missing
from captionmill.stages.encoding.loader import Failure
from captionmill.stages.settings import ExtractConfig


@dataclass(frozen=True)
class CacheConfig:
    """The cache of features that images are captioned from, and how those that it lacks are extracted."""

    features: AnyPath | None = None
    """Where it is; None is beside the table."""
    weights: AnyPath | None = None
    """The file of the backbone's weights, if it was moved since the model was trained."""
    machine: ExtractConfig = field(default_factory=ExtractConfig)
    """Of these only `MACHINE_SETTINGS` count: the model knows its backbone and preprocessing."""


@dataclass(frozen=True)
class CaptionSource:
    """What is to be captioned."""

    keys: Sequence[str]
    path: Path
    """Of the store."""
    store: FeatureStore | None
    """None if no image can be read."""
    extraction: ExtractSummary | None
    """What was extracted for it; None for a store that was there."""

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The images that cannot be read."""
        return self.extraction.failures if self.extraction else ()

    @property
    def reasons(self) -> dict[str, str]:
        """Why each of these cannot be read, by key."""
        return {failure.key: failure.reason for failure in self.failures}

    def row_sources(self) -> SourceChecksums:
        """[N] what each row of the table is made from, as a number.

        A failed row is made from its reason; any other from its features, whose checksum knows the picture too.
        """
        reasons = self.reasons
        texts = (f"{key}\0{reasons.get(key, '')}".encode("utf-8", "replace") for key in self.keys)
        sources = np.fromiter(map(zlib.crc32, texts), dtype=np.uint32, count=len(self.keys))
        if self.store is not None:
            places = [place for place, key in enumerate(self.keys) if key not in reasons]
            sources[places] = self.store.row_checksums([self.store.position(self.keys[place]) for place in places])
        return sources


def open_source(path: Path, features: AnyPath | None, spec: FeatureSpec) -> CaptionSource:
    """The store at `path`, which is to hold what `spec` says; InputError if `features` names another cache."""
    if features is not None:
        raise InputError(f"{path}: holds features already; leave out `features` {features}")
    store = FeatureStore.open(path)
    spec.require(store.spec, mine="the model", others=str(path))
    return CaptionSource(store.keys, path, store, None)


def extract_source(
    found: Sequence[ImageFile],
    path: Path,
    spec: FeatureSpec,
    cache: CacheConfig,
    *,
    replaces: bool,
    progress: Progress,
) -> CaptionSource:
    """Add to the store at `path` what it lacks of `found`.

    Raises SpecMismatchError if it holds other features than `spec` says; with `replaces` it is made anew then.
    """
    missing, machine = len(found), cache.machine
    replaced = False
    if store_exists(path):
        store = FeatureStore.open(path)
        if replaces and spec.differences(store.spec):
            replaced = True
        else:
            spec.require(store.spec, mine="the model", others=str(path))
            machine = replace(machine, dtype=store.dtype)
            missing = len(find_missing(found, store))
    extraction = ExtractSummary(len(found), len(found), 0, (), engine="", duration_s=0.0)
    if missing:
        encoder = encoder_for_spec(spec, machine, as_path(cache.weights))
        if replaced:
            with lock_store(path):
                delete_store(path)
        extraction = extract_images(found, path, encoder, machine, progress=progress)
    can_be_read = len(extraction.failures) < len(found)
    return CaptionSource(
        [image.key for image in found], path, FeatureStore.open(path) if can_be_read else None, extraction
    )
