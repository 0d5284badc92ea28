"""What an extraction or a captioning would do, and how long by the rates of earlier runs; nothing is changed."""

import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from captionmill.data.csv_tables import failed_keys
from captionmill.data.features.log import ExtractionRecord, read_records
from captionmill.data.features.mirror import StoreMirror
from captionmill.data.features.shard import shard_of, shard_path
from captionmill.data.features.spec import USUAL_PREPROCESS, FeatureSpec, Preprocess
from captionmill.data.features.store import FeatureStore, store_exists
from captionmill.data.images.find import search_images
from captionmill.data.images.lists import ImagesOf, as_images
from captionmill.data.images.read import ImageFile
from captionmill.data.images.walk import PassedOver
from captionmill.data.paths import AnyPath, AnyPaths, as_location
from captionmill.data.tables.edits import take_edits
from captionmill.data.tables.formats import is_caption_table, read_captions
from captionmill.data.tables.journal import CaptionJournal, made_dir
from captionmill.data.tables.older import convert_older
from captionmill.data.tables.review import is_decision
from captionmill.data.urls import local_path
from captionmill.pipeline.captioning.companions import EmbedInto
from captionmill.pipeline.captioning.folder import row_settings
from captionmill.pipeline.captioning.source import CacheConfig, CaptionSource, open_source
from captionmill.pipeline.captioning.task import CaptionTask, prepare_captions
from captionmill.stages.decoding.trained import read_models
from captionmill.stages.encoding.encoder import build_encoder, build_untrained_encoder
from captionmill.stages.encoding.extract import FAILURES_NAME
from captionmill.stages.encoding.loader import Failure
from captionmill.stages.encoding.missing import find_missing, find_unlisted
from captionmill.stages.encoding.weights import NAMED_WEIGHTS, SCENES_BACKBONE, find_named_weights
from captionmill.stages.settings import ExtractConfig, SearchConfig
from captionmill.stages.table_settings import TableConfig

_RECORDS = 5  # of the last runs, from which a rate is taken


@dataclass(frozen=True)
class RowsForecast:
    """What would become of a table of captions."""

    made: int
    """Captions that would be made; images that failed before and fail again are left out."""
    corrections: int
    """Captions that a person changed since the last run."""
    reviewed: int
    """Captions that a person wrote or accepted; they stay."""
    elsewhere: int
    """Decisions of a person on images that are not there, or were renamed; they are kept."""


@dataclass(frozen=True)
class Forecast:
    """What a run would do."""

    found: int
    to_read: int
    """Images whose features are missing."""
    read_again: int
    """Those of them that have features, but changed since, or whose row is damaged."""
    failed_before: int
    """Those of them that could not be read in the last run; it is tried again."""
    unlisted: int
    """Rows of the store whose image is not found."""
    duration_s: float | None
    """About how long it would take; None if no run here has shown a rate yet."""
    rows: RowsForecast | None = None
    """None if no table is written."""
    left_out: PassedOver = field(default_factory=PassedOver)
    """What the search for images passed over."""


def forecast_extraction(
    images: ImagesOf,
    output: AnyPath,
    config: ExtractConfig = ExtractConfig(),
    *,
    overwrite: bool = False,
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
) -> Forecast:
    """What `extract` with these arguments would do. Raises its errors that do not depend on what is in an image."""
    location = as_location(local_path(output))
    search = search_images(as_images(images))
    found = search.found[:limit]
    if shard is not None:
        found, location = list(shard_of(found, *shard)), shard_path(location, *shard)
    with ExitStack() as stack:
        path = Path(location)
        if isinstance(location, str):
            staging = stack.enter_context(tempfile.TemporaryDirectory(prefix="captionmill-"))
            path = StoreMirror(location, Path(staging)).pull()
        target = path.with_name(f".{path.name}.new") if overwrite else path
        store = FeatureStore.open(target) if store_exists(target) else None
        spec = _spec_of(config, store)
        if store is not None:
            store.spec.require_run(spec, output)
        missing = find_missing(found, store)
        unlisted = find_unlisted(store.keys, found) if store is not None and not limit else ()
        records = _records(path)
    is_own = config.own_failures or shard is not None
    failures_path = path.with_suffix(f".{FAILURES_NAME}") if is_own else path.with_name(FAILURES_NAME)
    return replace(
        _forecast(found, missing, store, failed_keys(failures_path)),
        unlisted=len(unlisted),
        duration_s=_duration((len(missing), _reading_rate(records))),
        left_out=search.left_out,
    )


def forecast_captions(
    images: ImagesOf,
    model: AnyPaths,
    output: AnyPath,
    search: SearchConfig = SearchConfig(),
    *,
    table: TableConfig = TableConfig(),
    cache: CacheConfig = CacheConfig(),
    embed_into: EmbedInto | None = None,
    overwrite: bool | Literal["made"] = False,
) -> Forecast:
    """What `caption_folder` with these arguments would do, and its errors that do not depend on what is in an image."""
    models, output = read_models(model, weights_later=True), Path(output)
    task = prepare_captions(images, output, table, cache.features, embed_into=embed_into, overwrite=overwrite)
    path = task.store_path
    failed = {row.path for row in read_captions(output) if not row.is_captioned} if is_caption_table(output) else set()
    if task.found is None:
        source = open_source(path, cache.features, models.spec)
        forecast = _forecast(source.keys, (), source.store, failed)
    else:
        store = FeatureStore.open(path) if store_exists(path) else None
        if store is not None and overwrite and models.spec.differences(store.spec):
            store = None  # it would be replaced
        if store is not None:
            models.spec.require(store.spec, mine="the model", others=str(path))
        missing = find_missing(task.found, store)
        unread = tuple(Failure(image.key, "not read yet") for image in missing)
        source = CaptionSource([image.key for image in task.found], path, store, None, unread)
        forecast = _forecast(task.found, missing, store, failed)
    rows = _forecast_rows(task, output, source, row_settings(models, search, task.table))
    rows = replace(rows, made=rows.made - forecast.failed_before)
    records = _records(path)
    return replace(
        forecast,
        duration_s=_duration((forecast.to_read, _reading_rate(records)), (rows.made, _captioning_rate(records))),
        rows=rows,
        left_out=task.left_out,
    )


def _spec_of(config: ExtractConfig, store: FeatureStore | None) -> FeatureSpec:
    """The spec of the features that `config` makes; weights that are not on this machine count as those of `store`."""
    usual = store.spec.preprocess if store is not None else USUAL_PREPROCESS
    preprocess = config.preprocess or cast(Preprocess, usual)
    is_named = config.weights in NAMED_WEIGHTS and config.backbone != SCENES_BACKBONE
    if is_named and not find_named_weights(config.backbone, config.weights)[0].exists():
        spec = store.spec if store is not None else build_untrained_encoder(config).spec
        return replace(
            spec, backbone=config.backbone, preprocess=preprocess, image_size=config.image_size, views=config.views
        )
    return build_encoder(replace(config, preprocess=preprocess)).spec


def _forecast(
    found: Sequence[object], missing: Sequence[ImageFile], store: FeatureStore | None, failed: Collection[str]
) -> Forecast:
    """The counts of images."""
    return Forecast(
        found=len(found),
        to_read=len(missing),
        read_again=sum(store is not None and image.key in store for image in missing),
        failed_before=sum(image.key in failed for image in missing),
        unlisted=0,
        duration_s=None,
    )


def _forecast_rows(
    task: CaptionTask, output: Path, source: CaptionSource, made_with: Mapping[str, Any]
) -> RowsForecast:
    """What would become of the rows of the table."""
    with tempfile.TemporaryDirectory(prefix="captionmill-") as folder:
        journal = CaptionJournal(made_dir(output))
        if not journal.path.exists() and made_dir(output).exists():  # of an earlier version: converted in a copy
            copy = shutil.copytree(made_dir(output), Path(folder) / "made")
            journal = CaptionJournal(copy)
            convert_older(output, journal)
        known = journal.known(source.keys, source.row_sources(), made_with)
        corrections = task.companions.corrections if task.companions else ()
        edits = take_edits(output, journal, known, corrections, keep_copy=False)
    decided = {review.path: review.decision for review in [*known.reviews.values(), *edits]}
    if task.table.redo_corrected:
        decided = {}
    reviewed = sum(is_decision(decided.get(key, "later")) for key in source.keys)
    here = sum(decided.get(key, "undecided") != "undecided" for key in source.keys)
    elsewhere = sum(decision != "undecided" for decision in decided.values()) - here
    return RowsForecast(len(source.keys) - int(known.is_current.sum()), len(edits), reviewed, elsewhere)


def _records(store_path: Path) -> list[ExtractionRecord]:
    """What the log of the store shows of earlier runs; without one, the logs of other stores in its folder."""
    if records := read_records(store_path):
        return records
    others = sorted(store_path.parent.glob("*.log.csv"), key=lambda path: path.stat().st_mtime)
    return [record for path in others for record in read_records(path.with_suffix("").with_suffix(".h5"))]


def _reading_rate(records: Sequence[ExtractionRecord]) -> float | None:
    """Images per second in the last runs that read any."""
    return _recent_rate(
        [(record.extracted + record.failed, record.duration_s) for record in records if record.extracted]
    )


def _captioning_rate(records: Sequence[ExtractionRecord]) -> float | None:
    """Captions per second in the last runs that made a caption for each image."""
    pairs = [
        (record.captioned, record.captioning_s)
        for record in records
        if record.captioned and record.captioning_s and not record.cached
    ]
    return _recent_rate(pairs)


def _recent_rate(pairs: Sequence[tuple[int, float]]) -> float | None:
    last = pairs[-_RECORDS:]
    total_s = sum(duration_s for _, duration_s in last)
    return sum(count for count, _ in last) / total_s if total_s else None


def _duration(*work: tuple[int, float | None]) -> float | None:
    """Seconds for so many pieces of work, each with its rate; None if a rate that is needed is not known."""
    if any(count and rate is None for count, rate in work):
        return None
    return sum(count / rate for count, rate in work if count and rate)
