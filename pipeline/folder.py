"""Caption a folder: stage one into a cache, stage two from the cache, one CSV row for every image found."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from captionmill.data.atomic import require_other_file
from captionmill.data.errors import InputError, WeightsError
from captionmill.data.feature_spec import FeatureSpec
from captionmill.data.feature_store import FeatureStore, delete_store, store_exists
from captionmill.data.feature_writer import lock_store
from captionmill.data.image_files import find_images
from captionmill.data.tables import CaptionRow, write_captions
from captionmill.data.urls import is_url
from captionmill.pipeline.gallery import GalleryRow, write_gallery
from captionmill.stages.config import ExtractConfig, SearchConfig
from captionmill.stages.decoding.caption import Captioner
from captionmill.stages.encoding.encoder import Encoder, build_encoder, config_for_spec
from captionmill.stages.encoding.extract import extract_images, find_missing
from captionmill.stages.encoding.loader import Failure
from captionmill.stages.runtime import Progress, no_progress


@dataclass(frozen=True)
class FolderSummary:
    """What captioning a folder did; `found` = `captioned` + the number of `failures`."""

    found: int
    cached: int
    """Images whose features were in the cache already."""
    captioned: int
    failures: tuple[Failure, ...]
    features_path: Path
    """The cache that the captions were decoded from."""
    duration_s: float


def cache_path_for(output: Path) -> Path:
    """Where the features of the images in the table `output` are cached unless the user says otherwise."""
    return output.with_suffix(".features.h5")


def caption_folder(
    images: Path | str,
    model: Path | Sequence[Path],
    output: Path,
    *,
    features: Path | None = None,
    gallery: Path | None = None,
    search: SearchConfig = SearchConfig(),
    machine: ExtractConfig = ExtractConfig(),
    weights: Path | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> FolderSummary:
    """Caption every image of `images`, as `extract` takes them, with `model` and write the table `output`.

    Several folders in `model` are an ensemble. Features are cached in `features`, by default beside the table. The
    model knows its backbone and preprocessing; of `machine` only batch size, workers, device and precision are used.
    `gallery` is a page of all pictures and captions to write as well. `weights` says where the backbone's weights file
    is now, if it was moved since the model was trained. `overwrite` replaces a cache that holds other features than the
    model needs.

    Raises InputError if there is no image or none can be read (the table is written all the same), WeightsError if the
    backbone's weights are not the model's, SpecMismatchError if the cache holds other features than the model needs.
    Models that do not fit each other are refused as by `Captioner.load`.
    """
    started = time.monotonic()
    captioner = Captioner.load(model, device=machine.device)
    found = find_images(images)
    cache_path = features or cache_path_for(output)
    require_other_file(output, None if is_url(images) else Path(images), cache_path)
    if cache_path == output:
        raise InputError(f"{output}: cannot be the table and the cache of features at once")
    if gallery is not None:
        if gallery in (output, cache_path):
            raise InputError(f"{gallery}: cannot be the gallery and another output at once")
        require_other_file(gallery, None if is_url(images) else Path(images), cache_path, output)
    missing = len(found)
    replaced = False
    failures: tuple[Failure, ...] = ()
    if store_exists(cache_path):
        store = FeatureStore.open(cache_path)
        if overwrite and captioner.spec.differences(store.spec):
            replaced = True
        else:
            captioner.spec.require(store.spec, mine="the model", others=str(cache_path))
            machine = replace(machine, dtype=store.dtype)
            missing = len(find_missing(found, store))
    if missing:
        encoder = _build_encoder(captioner.spec, machine, weights)
        if replaced:
            with lock_store(cache_path):
                delete_store(cache_path)
        failures = extract_images(found, cache_path, encoder, machine, progress=progress).failures
    reasons = {failure.key: failure.reason for failure in failures}
    readable = [image.key for image in found if image.key not in reasons]
    rows = {key: CaptionRow(key, "", None, "failed", reason) for key, reason in reasons.items()}
    if readable:
        store = FeatureStore.open(cache_path)
        for key, caption in captioner.captions(store, readable, search, progress=progress):
            rows[key] = CaptionRow(key, caption.text, caption.confidence, "ok", "")
    write_captions(output, [rows[image.key] for image in found])
    if gallery is not None:
        told = [_gallery_row(rows[image.key]) for image in found]
        title = f"Captions of {images if is_url(images) else Path(images).resolve().name}"
        write_gallery(gallery, title, found, told, workers=machine.workers, progress=progress)
    if not readable:
        raise InputError(f"{images}: none of {len(found)} images can be read; the reasons are in {output}")
    return FolderSummary(
        len(found), len(found) - missing, len(readable), failures, cache_path, time.monotonic() - started
    )


def _gallery_row(row: CaptionRow) -> GalleryRow:
    return GalleryRow(row.path, row.caption, row.confidence, status=row.status, error=row.error)


def _build_encoder(spec: FeatureSpec, machine: ExtractConfig, weights: Path | None) -> Encoder:
    """The encoder that makes features of `spec`; WeightsError or SpecMismatchError if its weights are not here."""
    config = config_for_spec(spec, machine)
    if weights:
        config = replace(config, weights=str(weights))
    try:
        encoder = build_encoder(config, resize_size=spec.resize_size)
    except WeightsError as exc:
        raise WeightsError(f"{exc}; the model's features were made with {spec.weights}: pass --weights FILE") from exc
    spec.require(encoder.spec, mine="the model", others=config.weights)
    return encoder
