"""Captions a folder: features go into a cache, captions come from the cache, with one row for each image found."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from captionmill.data.errors import InputError
from captionmill.data.features.log import append_record
from captionmill.data.features.store import cache_path_for, is_store_file
from captionmill.data.files import require_other_file
from captionmill.data.images.find import search_images
from captionmill.data.images.walk import PassedOver
from captionmill.data.models.bundle import model_digest
from captionmill.data.models.source import find_models
from captionmill.data.paths import AnyPath, AnyPaths, as_location, as_path
from captionmill.data.progress import Progress, no_progress
from captionmill.data.tables.formats import format_of, is_caption_table
from captionmill.data.tables.review import Review
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import TableSummary, WantedTable, update_captions
from captionmill.pipeline.captioning.companions import Companions, EmbedInto
from captionmill.pipeline.captioning.embedding import EmbedSummary
from captionmill.pipeline.captioning.flags import find_flags, usual_low_confidence
from captionmill.pipeline.captioning.source import CacheConfig, CaptionSource, extract_source, open_source
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.encoding.loader import Failure
from captionmill.stages.scoring.statistics import repeats_word
from captionmill.stages.settings import SearchConfig, TableConfig

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderSummary:
    """The result of captioning a folder; `found` = `captioned` + the number of `failures`."""

    found: int
    cached: int
    """Images whose features were in the cache already."""
    captioned: int
    made: int
    """Rows made now; the others are unchanged from an earlier run."""
    corrections: int
    """Captions that a person had changed in the table since it was written."""
    reviewed: int
    """Captions that a person wrote or accepted; the model's stay out of the table."""
    failures: tuple[Failure, ...]
    features_path: Path
    """The store that the captions were decoded from."""
    duration_s: float
    sidecars: int | None = None
    """Files written beside images, if requested; those that were up to date are not counted."""
    embedded: EmbedSummary | None = None
    """The result for the image files, if captions were written into them."""
    left_out: PassedOver = field(default_factory=PassedOver)
    """What the search for images passed over, such as thumbnails and hidden files."""


def caption_folder(
    images: AnyPath,
    model: AnyPaths,
    output: AnyPath,
    search: SearchConfig = SearchConfig(),
    *,
    table: TableConfig = TableConfig(),
    cache: CacheConfig = CacheConfig(),
    embed_into: EmbedInto | None = None,
    overwrite: bool | Literal["made"] = False,
    progress: Progress = no_progress,
) -> FolderSummary:
    """Caption every image of `images`, as `extract` takes them, with `model` and write the table `output`.

    `images` may be a feature store: then its rows are captioned, and no image is opened. Several folders in `model`
    form an ensemble. Rows of an earlier table are kept if model, settings and image have not changed. Captions that
    a person changed in it are kept whatever changes, and go into every other file; `table.redo_corrected` forgets them.

    `table` is the table's format, which captions are flagged, and which other files are written: a gallery, and a text
    file beside each image. `embed_into` is a folder for copies of the images that contain their captions, or "images"
    to write into the images themselves. `cache` describes where features are stored and how missing ones are extracted.

    `overwrite` replaces an `output` that is not a table of captions, a cache whose features do not match
    the model, and sidecars and descriptions that another program wrote; "made" replaces only an `output` and a cache
    that an earlier run made for something else.

    Raises InputError if there is no image or none can be read (the table is written even then), or `output` is another
    kind of file or has the name of one; WeightsError if the backbone's weights are not the model's, SpecMismatchError
    if the features in the cache do not match the model. Raises for models that do not match each other as
    `Captioner.load` does.
    """
    started = time.monotonic()
    images, models, output = as_location(images), find_models(model), Path(output)
    table = replace(table, format=table.format or format_of(output))
    machine = cache.machine
    captioner = Captioner.load(models, device=machine.device)
    companions: Companions | None = None
    left_out = PassedOver()
    if isinstance(images, Path) and images.is_file() and is_store_file(images):
        if table.sidecar is not None or embed_into is not None or table.gallery is not None:
            raise InputError(f"{images}: holds features, not images to write captions to; give the images themselves")
        require_other_file(output, images)
        _require_replaceable(output, overwrite=bool(overwrite))
        source = open_source(images, cache.features, captioner.spec)
    else:
        image_search = search_images(images)
        found, left_out = image_search.found, image_search.left_out
        store_path = as_path(cache.features) or cache_path_for(output)
        require_other_file(output, images if isinstance(images, Path) else None, store_path)
        if store_path == output:
            raise InputError(f"{output}: cannot be the table and the cache of features at once")
        _require_replaceable(output, overwrite=bool(overwrite))
        companions = Companions(
            images, found, output, store_path, table, embed_into=embed_into, overwrite=overwrite is True
        )
        source = extract_source(found, store_path, captioner.spec, cache, replaces=bool(overwrite), progress=progress)
    captioning_started = time.monotonic()
    updated = _update_table(
        output,
        source,
        models,
        captioner,
        search=search,
        table=table,
        corrections=companions.corrections if companions else (),
        keep_edited=overwrite is not True,
        progress=progress,
    )
    captioned = len(source.keys) - len(source.failures)
    if source.extraction is not None:
        captioning_s = time.monotonic() - captioning_started
        extraction = replace(source.extraction, left_out=left_out)
        append_record(source.path, extraction.record(images, captioned=captioned, captioning_s=captioning_s))
    sidecar_count = embedded = None
    if companions is not None:
        companions.write_gallery(workers=machine.workers, progress=progress)
    if not captioned and source.keys:
        raise InputError(f"{images}: none of {len(source.keys)} images can be read; the reasons are in {output}")
    if companions is not None:
        sidecar_count = companions.write_sidecars(progress=progress)
        embedded = companions.embed(progress=progress)
    return FolderSummary(
        found=len(source.keys),
        cached=source.extraction.cached if source.extraction else len(source.keys),
        captioned=captioned,
        made=updated.made,
        corrections=updated.corrections,
        reviewed=updated.reviewed,
        failures=source.failures,
        features_path=source.path,
        duration_s=time.monotonic() - started,
        sidecars=sidecar_count,
        embedded=embedded,
        left_out=left_out,
    )


def _require_replaceable(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not (overwrite or is_caption_table(output)):
        raise InputError(f"{output}: not a table of captions; pass `overwrite` to replace it, or another `output`")


def _update_table(
    output: Path,
    source: CaptionSource,
    models: Sequence[Path],
    captioner: Captioner,
    *,
    search: SearchConfig,
    table: TableConfig,
    corrections: Sequence[Review],
    keep_edited: bool,
    progress: Progress,
) -> TableSummary:
    """Bring the table up to date."""
    low_confidence = table.low_confidence
    if low_confidence is None:
        low_confidence = usual_low_confidence(captioner.bundles)
        if low_confidence is None:
            _logger.warning("the model has no usual confidence; pass `low_confidence` to flag captions below it")
    made_with = {
        "models": [model_digest(folder) for folder in models],
        "search": asdict(captioner.fit_search(search)),
        "low_confidence": low_confidence,
    }

    make_rows = partial(_make_rows, source, captioner, search=search, low_confidence=low_confidence, progress=progress)
    wanted = WantedTable(
        source.keys,
        source.row_sources(),
        made_with,
        table.format or "csv",
        with_alternatives=search.alternatives > 0,
        is_as_wanted=partial(_is_as_wanted, made_with),
    )
    return update_captions(
        output,
        wanted,
        make_rows,
        corrections=corrections,
        keep_edited=keep_edited,
        withdraw_reviews=table.redo_corrected,
    )


def _is_as_wanted(wanted: Mapping[str, Any], made_with: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether the caption of `row`, of a version in which any word could follow itself, is the one that is `wanted`."""
    search = {"repeat_words": wanted["search"]["repeat_words"], **made_with["search"]}
    return {**made_with, "search": search} == wanted and (search["repeat_words"] or not repeats_word(row["caption"]))


def _make_rows(
    source: CaptionSource,
    captioner: Captioner,
    keys: Sequence[str],
    *,
    search: SearchConfig,
    low_confidence: float | None,
    progress: Progress,
) -> Iterator[CaptionRow]:
    """The rows of `keys`, in that order."""
    reasons, store = source.reasons, source.store
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
