"""Stage one: images in, a feature store out. Done work is skipped, unreadable images are listed, nothing is lost."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.atomic import require_other_file
from captionmill.data.errors import InputError, StoreError
from captionmill.data.feature_store import FeatureStore, delete_store, parts_dir
from captionmill.data.feature_writer import FeatureWriter
from captionmill.data.image_source import is_unchanged
from captionmill.data.images import ImageFile, find_images
from captionmill.data.tables import write_failures
from captionmill.stages.config import ExtractConfig
from captionmill.stages.encoding.encoder import Encoder, build_encoder
from captionmill.stages.encoding.engine import TorchEngine
from captionmill.stages.encoding.loader import Failure, load_batches
from captionmill.stages.runtime import Progress, choose_workers, no_progress, versions

FAILURES_NAME = "failures.csv"


@dataclass(frozen=True)
class ExtractSummary:
    """What one extraction did; `found` = `cached` + `extracted` + the number of `failures`."""

    found: int
    """Images under the folder, or in the list."""
    cached: int
    """Images that were in the store already, and have not changed since."""
    extracted: int
    """Images added to the store."""
    failures: tuple[Failure, ...]
    """Images that could not be read, with reasons."""
    engine: str
    """Device and arithmetic; "" if nothing was left to do."""
    duration_s: float
    """Seconds from the first image read to the store closed."""


def extract(
    images: Path,
    output: Path,
    config: ExtractConfig = ExtractConfig(),
    *,
    overwrite: bool = False,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> ExtractSummary:
    """Cache the features of every image of `images` (a folder or a list of paths) in the store `output`.

    Images already in the store are skipped unless their file has changed. Unreadable ones are listed in `failures.csv`
    beside the store. `overwrite` makes the store anew; the old one stays until the new one is complete. `limit` stops
    after that many images of the sorted list.

    Raises InputError if there is no image or none can be read, WeightsError for weights that cannot be had,
    SpecMismatchError if the store was made with other weights or preprocessing.
    """
    require_other_file(output, images)
    found = find_images(images)[:limit]
    encoder = build_encoder(config)
    target = output.with_name(f".{output.name}.new") if overwrite else output
    if overwrite and not _can_go_on(target, encoder, config, {image.key for image in found}):
        delete_store(target)
    summary = extract_images(found, target, encoder, config, progress=progress)
    failures_path = output.with_name(FAILURES_NAME)
    if summary.failures or failures_path.exists():
        write_failures(failures_path, [(failure.key, failure.reason) for failure in summary.failures])
    if not summary.cached + summary.extracted:
        first = summary.failures[0]
        raise InputError(
            f"{images}: none of {summary.found} images can be read ({first.key}: {first.reason}); see {failures_path}"
        )
    if overwrite:
        shutil.rmtree(parts_dir(output), ignore_errors=True)
        target.replace(output)
    return summary


def _can_go_on(target: Path, encoder: Encoder, config: ExtractConfig, keys: set[str]) -> bool:
    """Whether an earlier `overwrite` run, cut short, left rows of this very kind and of no other image."""
    try:
        store = FeatureStore.open(target)
    except StoreError:
        return False
    return store.dtype == config.dtype and not store.spec.differences(encoder.spec) and keys.issuperset(store.keys)


def find_missing(found: Sequence[ImageFile], store: FeatureStore | None) -> list[ImageFile]:
    """The images of `found` that have no row in `store`, or have changed since theirs was made."""
    if store is None:
        return list(found)
    return [image for image in found if image.key not in store or not is_unchanged(image.path, store.source(image.key))]


def extract_images(
    found: Sequence[ImageFile],
    output: Path,
    encoder: Encoder,
    config: ExtractConfig,
    *,
    progress: Progress = no_progress,
) -> ExtractSummary:
    """Add the features of the images of `found` that the store `output` lacks; errors as in `extract`."""
    made_by = versions() | {"precision": config.precision}
    started = time.monotonic()
    with FeatureWriter(output, encoder.spec, dtype=config.dtype, made_by=made_by) as writer:
        missing = find_missing(found, writer.store)
        if not missing:
            return ExtractSummary(len(found), len(found), 0, (), "", time.monotonic() - started)
        engine = TorchEngine(encoder, device=config.device, precision=config.precision)
        failures: list[Failure] = []
        extracted = 0
        progress("extract", 0, len(missing))
        workers = choose_workers(config.workers)
        for batch in load_batches(missing, encoder.prepare, batch_size=config.batch_size, workers=workers):
            if batch.keys:
                writer.add(batch.keys, engine.encode(batch.pixels), batch.sources)
            extracted += len(batch.keys)
            failures += batch.failures
            writer.drop(failure.key for failure in batch.failures)
            progress("extract", extracted + len(failures), len(missing))
    return ExtractSummary(
        found=len(found),
        cached=len(found) - len(missing),
        extracted=extracted,
        failures=tuple(failures),
        engine=engine.description,
        duration_s=time.monotonic() - started,
    )
