"""Caption a folder: stage one into a cache, stage two from the cache, one row for every image found."""

import logging
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from captionmill.data.atomic import require_other_file
from captionmill.data.bundle import bundle_digest
from captionmill.data.caption_journal import Sources
from captionmill.data.caption_table import CaptionRow, TableFormat, format_of, read_captions
from captionmill.data.caption_writer import update_captions
from captionmill.data.errors import InputError, WeightsError
from captionmill.data.feature_spec import FeatureSpec
from captionmill.data.feature_store import FeatureStore, delete_store, is_store_file, store_exists
from captionmill.data.feature_writer import lock_store
from captionmill.data.image_files import ImageFile, find_images
from captionmill.data.urls import is_url
from captionmill.pipeline.embedding import Embedding, EmbedSummary
from captionmill.pipeline.sidecars import Sidecars
from captionmill.stages.config import ExtractConfig, SearchConfig
from captionmill.stages.decoding.caption import Captioner
from captionmill.stages.decoding.caption_flags import find_flags, usual_low_confidence
from captionmill.stages.encoding.encoder import Encoder, build_encoder, config_for_spec
from captionmill.stages.encoding.extract import extract_images, find_missing
from captionmill.stages.encoding.loader import Failure
from captionmill.stages.runtime import Progress, no_progress

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderSummary:
    """What captioning a folder did; `found` = `captioned` + the number of `failures`."""

    found: int
    cached: int
    """Images whose features were in the cache already."""
    captioned: int
    made: int
    """Rows made now; the others are as an earlier run left them."""
    failures: tuple[Failure, ...]
    features_path: Path
    """The store that the captions were decoded from."""
    duration_s: float
    sidecars: int | None = None
    """Files written beside images, if they were asked for; those that were right already are not counted."""
    embedded: EmbedSummary | None = None
    """What became of the image files, if captions were to be written into them."""


def cache_path_for(output: Path) -> Path:
    """Where the features of the images in the table `output` are cached unless the user says otherwise."""
    return output.with_suffix(".features.h5")


def caption_folder(
    images: Path | str,
    model: Path | Sequence[Path],
    output: Path,
    *,
    features: Path | None = None,
    search: SearchConfig = SearchConfig(),
    low_confidence: float | None = None,
    table_format: TableFormat | None = None,
    machine: ExtractConfig = ExtractConfig(),
    weights: Path | None = None,
    sidecar: str | None = None,
    embed_into: Path | Literal["images"] | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> FolderSummary:
    """Caption every image of `images`, as `extract` takes them, with `model` and write the table `output`.

    `images` may be a feature store: then its rows are captioned, and no image is opened. Several folders in `model`
    are an ensemble. Rows of an earlier table are kept if model, settings and image are what they were. Captions less
    sure than `low_confidence` are flagged, by default those as unsure as a tenth of the model's validation captions.
    The format is that of the suffix of `output`, CSV if it says nothing.

    Features are cached in `features`, by default beside the table. The model knows its backbone and preprocessing; of
    `machine` only batch size, workers, device and precision are used. `weights` says where the backbone's weights file
    is now, if it was moved since the model was trained.

    `sidecar` is the ending of a text file to write beside each image. `embed_into` is a folder for copies of the images
    that hold their captions, or "images" to write into these themselves. `overwrite` replaces a cache that holds other
    features than the model needs, and sidecars and descriptions that somebody else wrote.

    Raises InputError if there is no image or none can be read (the table is written all the same), WeightsError if the
    backbone's weights are not the model's, SpecMismatchError if the cache holds other features than the model needs.
    Models that do not fit each other are refused as by `Captioner.load`.
    """
    started = time.monotonic()
    models = [model] if isinstance(model, Path) else list(model)
    captioner = Captioner.load(models, device=machine.device)
    failures: tuple[Failure, ...] = ()
    sidecars: Sidecars | None = None
    embedding: Embedding | None = None
    store: FeatureStore | None
    keys: Sequence[str]
    if isinstance(images, Path) and images.is_file() and is_store_file(images):
        if features is not None:
            raise InputError(f"{images}: holds features already; leave out --features {features}")
        require_other_file(output, images)
        if sidecar is not None or embed_into is not None:
            raise InputError(f"{images}: holds features and no images to write captions to; name the images themselves")
        store_path, store = images, FeatureStore.open(images)
        captioner.spec.require(store.spec, mine="the model", others=str(images))
        keys, cached = store.keys, len(store)
    else:
        found = find_images(images)
        store_path = features or cache_path_for(output)
        require_other_file(output, None if is_url(images) else Path(images), store_path)
        if store_path == output:
            raise InputError(f"{output}: cannot be the table and the cache of features at once")
        if sidecar is not None:
            others = [store_path] if is_url(images) else [store_path, Path(images)]
            sidecars = Sidecars(found, sidecar, output, others=others, overwrite=overwrite)
        if embed_into is not None:
            embedding = Embedding(images, found, None if embed_into == "images" else Path(embed_into))
        cached, failures = _extract_missing(
            found, store_path, captioner.spec, machine, weights, overwrite=overwrite, progress=progress
        )
        keys = [image.key for image in found]
        store = FeatureStore.open(store_path) if len(failures) < len(keys) else None
    reasons = {failure.key: failure.reason for failure in failures}
    if low_confidence is None:
        low_confidence = usual_low_confidence(captioner.bundles)
        if low_confidence is None:
            _logger.warning("the model does not say how sure it usually is; --low-confidence says what to flag")
    made_with = {
        "models": [bundle_digest(folder) for folder in models],
        "search": asdict(search),
        "low_confidence": low_confidence,
    }
    made = update_captions(
        output,
        keys,
        _row_sources(keys, reasons, store),
        made_with,
        lambda missing: _make_rows(
            missing,
            reasons,
            store,
            captioner=captioner,
            search=search,
            low_confidence=low_confidence,
            progress=progress,
        ),
        table_format=table_format or format_of(output),
        with_alternatives=search.alternatives > 0,
    )
    if len(failures) == len(keys):
        raise InputError(f"{images}: none of {len(keys)} images can be read; the reasons are in {output}")
    sidecar_count = embedded = None
    if sidecars is not None:
        sidecar_count = sidecars.write(read_captions(output), progress=progress)
    if embedding is not None:
        embedded = embedding.write(read_captions(output), overwrite=overwrite, progress=progress)
    return FolderSummary(
        found=len(keys),
        cached=cached,
        captioned=len(keys) - len(failures),
        made=made,
        failures=failures,
        features_path=store_path,
        duration_s=time.monotonic() - started,
        sidecars=sidecar_count,
        embedded=embedded,
    )


def _extract_missing(
    found: Sequence[ImageFile],
    path: Path,
    spec: FeatureSpec,
    machine: ExtractConfig,
    weights: Path | None,
    *,
    overwrite: bool,
    progress: Progress,
) -> tuple[int, tuple[Failure, ...]]:
    """Add to the store at `path` what it lacks of `found`; how many were there, and which cannot be read."""
    missing = len(found)
    replaced = False
    if store_exists(path):
        store = FeatureStore.open(path)
        if overwrite and spec.differences(store.spec):
            replaced = True
        else:
            spec.require(store.spec, mine="the model", others=str(path))
            machine = replace(machine, dtype=store.dtype)
            missing = len(find_missing(found, store))
    if not missing:
        return len(found), ()
    encoder = _build_encoder(spec, machine, weights)
    if replaced:
        with lock_store(path):
            delete_store(path)
    return len(found) - missing, extract_images(found, path, encoder, machine, progress=progress).failures


def _make_rows(
    keys: Sequence[str],
    reasons: Mapping[str, str],
    store: FeatureStore | None,
    *,
    captioner: Captioner,
    search: SearchConfig,
    low_confidence: float | None,
    progress: Progress,
) -> Iterator[CaptionRow]:
    """The rows of `keys`, in that order."""
    readable = [key for key in keys if key not in reasons]
    captions = iter(captioner.captions(store, readable, search, progress=progress) if store is not None else ())
    for key in keys:
        if key in reasons:
            yield CaptionRow(key, "", None, status="failed", error=reasons[key])
            continue
        captioned_key, caption = next(captions)
        yield CaptionRow(
            captioned_key,
            caption.text,
            caption.confidence,
            tuple(alternative.text for alternative in caption.alternatives),
            find_flags(caption, low_confidence),
        )


def _row_sources(keys: Sequence[str], reasons: Mapping[str, str], store: FeatureStore | None) -> Sources:
    """[N] a failed row is made from its reason; any other from its features, whose checksum knows the picture too."""
    texts = (f"{key}\0{reasons.get(key, '')}".encode("utf-8", "replace") for key in keys)
    sources = np.fromiter(map(zlib.crc32, texts), dtype=np.uint32, count=len(keys))
    if store is not None:
        places = [place for place, key in enumerate(keys) if key not in reasons]
        sources[places] = store.row_checksums([store.position(keys[place]) for place in places])
    return sources


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
