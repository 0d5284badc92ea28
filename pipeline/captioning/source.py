"""The source of captions: an existing feature store, or images, whose missing features are extracted first."""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from captionmill.data.errors import InputError, SpecMismatchError
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore, delete_store, store_exists
from captionmill.data.features.writer import FeatureWriter, lock_store
from captionmill.data.images.read import ImageFile, ImageSource
from captionmill.data.paths import AnyPath, as_path
from captionmill.data.progress import Progress
from captionmill.data.tables.journal import SourceChecksums
from captionmill.stages.encoding.encoder import encoder_for_spec
from captionmill.stages.encoding.extract import ExtractSummary, extract_images
from captionmill.stages.encoding.loader import Failure
from captionmill.stages.encoding.missing import find_missing
from captionmill.stages.encoding.spread import Spread
from captionmill.stages.settings import ExtractConfig


@dataclass(frozen=True)
class CacheConfig:
    """The cache of features that images are captioned from, and how missing features are extracted."""

    features: AnyPath | None = None
    """Its path; None is beside the table."""
    weights: AnyPath | None = None
    """The file of the backbone's weights, if it was moved since the model was trained."""
    machine: ExtractConfig = field(default_factory=ExtractConfig)
    """Only its `MACHINE_SETTINGS` are used: the model determines backbone and preprocessing."""
    open_spread: Callable[[int], AbstractContextManager[Spread | None]] = lambda _: nullcontext()
    """Opens the processes that extract so many images, as `open_spread` does; by default only this one."""


@dataclass(frozen=True)
class CaptionSource:
    """The images to caption, and the store with their features."""

    keys: Sequence[str]
    path: Path
    """Path of the store."""
    store: FeatureStore | None
    """None if no image can be read."""
    extraction: ExtractSummary | None
    """The extraction that filled it; None for an existing store."""
    damaged: tuple[Failure, ...] = ()
    """Images whose rows in an existing store are damaged; an extraction makes such rows again."""

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The images that cannot be captioned."""
        return self.extraction.failures if self.extraction else self.damaged

    @property
    def reasons(self) -> dict[str, str]:
        """The reason why each of them cannot be captioned, by key."""
        return {failure.key: failure.reason for failure in self.failures}

    def row_sources(self) -> SourceChecksums:
        """Checksums [N] of what each row of the table is made from.

        A failed row is made from its reason, any other from its features, whose checksum includes the image.
        """
        reasons = self.reasons
        texts = (f"{key}\0{reasons.get(key, '')}".encode("utf-8", "replace") for key in self.keys)
        sources = np.fromiter(map(zlib.crc32, texts), dtype=np.uint32, count=len(self.keys))
        if self.store is not None:
            places = [place for place, key in enumerate(self.keys) if key not in reasons]
            sources[places] = self.store.row_checksums([self.store.position(self.keys[place]) for place in places])
        return sources

    def contents_of(self, keys: Sequence[str]) -> list[int]:
        """The hash of the content of each image; 0 if it has no features."""
        if self.store is None:
            return [0] * len(keys)
        hashes = self.store.sources()[:, ImageSource._fields.index("content_hash")].tolist()
        left_out = self.reasons
        return [hashes[self.store.position(key)] if key in self.store and key not in left_out else 0 for key in keys]

    def features_of(self, keys: Sequence[str]) -> list[int]:
        """A hash of the features of each image; 0 if it has none."""
        if self.store is None:
            return [0] * len(keys)
        hashes = {
            key: int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest())
            for block, rows, _, _ in self.store.stored_blocks([key for key in keys if key in self.store])
            for key, row in zip(block, rows, strict=True)
        }
        return [hashes.get(key, 0) for key in keys]


def open_source(path: Path, features: AnyPath | None, spec: FeatureSpec) -> CaptionSource:
    """The store at `path`, which must match `spec`; InputError if `features` names another cache.

    Every row is compared with its checksum: a damaged one has no caption, but a reason.
    """
    if features is not None:
        raise InputError(f"{path}: holds features already; leave out `features` {features}")
    store = FeatureStore.open(path)
    spec.require(store.spec, mine="the model", others=str(path))
    reason = f"its row in {path.name} is damaged; run extract again, which makes it again"
    return CaptionSource(store.keys, path, store, None, tuple(Failure(key, reason) for key in store.verify()))


def extract_source(
    found: Sequence[ImageFile],
    path: Path,
    spec: FeatureSpec,
    cache: CacheConfig,
    *,
    replaces: bool,
    before_work: Callable[[], object],
    progress: Progress,
) -> CaptionSource:
    """Add the missing features of `found` to the store at `path`.

    If its features do not match `spec`, raises SpecMismatchError, or with `replaces` extracts all of them again.
    `before_work` is called before the first image is encoded.
    """
    missing, machine = len(found), cache.machine
    store = None
    replaced = False
    if store_exists(path):
        store = FeatureStore.open(path)
        if replaces and spec.differences(store.spec):
            replaced = True
        else:
            try:
                spec.require(store.spec, mine="the model", others=str(path))
            except SpecMismatchError as exc:
                raise SpecMismatchError(f"{exc}; pass another `features`, or `overwrite` to make them again") from exc
            machine = replace(machine, dtype=store.dtype)
            missing = len(find_missing(found, store, warns=False))  # the extraction does
    extraction = ExtractSummary(len(found), len(found), 0, (), engine="", duration_s=0.0)
    if missing:
        encoder = encoder_for_spec(spec, machine, as_path(cache.weights))
        if replaced:
            with lock_store(path):
                delete_store(path)
        with cache.open_spread(missing) as spread:
            extraction = extract_images(
                found, path, encoder, machine, spread=spread, before_work=before_work, progress=progress
            )
    elif store is not None and (store.part_count > 1 or not path.exists()):  # an array job's, or an interrupted run's
        with FeatureWriter(path, spec, dtype=store.dtype, made_by=store.made_by):
            pass  # it joins the parts
    can_be_read = len(extraction.failures) < len(found)
    return CaptionSource(
        [image.key for image in found], path, FeatureStore.open(path) if can_be_read else None, extraction
    )
