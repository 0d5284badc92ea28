"""Captions a folder: features go into a cache, captions come from the cache, with one row for each image found."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache as cache_result
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from captionmill.data.errors import InputError
from captionmill.data.features.log import append_record
from captionmill.data.images.lists import ImagesOf
from captionmill.data.images.walk import PassedOver
from captionmill.data.models.bundle import model_digest
from captionmill.data.paths import AnyPath, AnyPaths
from captionmill.data.progress import Progress, no_progress
from captionmill.data.tables.review import Review
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import TableSummary, WantedTable, update_captions
from captionmill.pipeline.captioning.companions import EmbedInto, WrittenFiles
from captionmill.pipeline.captioning.embedding import EmbedSummary
from captionmill.pipeline.captioning.flags import find_flags, usual_low_confidence
from captionmill.pipeline.captioning.source import CacheConfig, CaptionSource, extract_source, open_source
from captionmill.pipeline.captioning.task import prepare_captions
from captionmill.pipeline.words import show_list
from captionmill.stages.decoding.trained import TrainedModels, read_models
from captionmill.stages.encoding.loader import Failure
from captionmill.stages.machine import limit_memory, require_machine
from captionmill.stages.scoring.statistics import repeats_word
from captionmill.stages.settings import SearchConfig
from captionmill.stages.table_settings import TableConfig

if TYPE_CHECKING:
    from captionmill.stages.decoding.captioner import Caption, Captioner

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
    renamed: int
    """Captions of a person that follow an image which was renamed or moved."""
    absent: int
    """Captions of a person of images that are not there; they are kept until these are."""
    changed: tuple[str, ...]
    """Keys of images that have changed since a person decided on their captions."""
    failures: tuple[Failure, ...]
    features_path: Path
    """The store that the captions were decoded from."""
    duration_s: float
    files: WrittenFiles = field(default_factory=WrittenFiles)
    """The result for the files that were written with the table."""
    left_out: PassedOver = field(default_factory=PassedOver)
    """What the search for images passed over, such as thumbnails and hidden files."""

    @property
    def decision_notes(self) -> list[str]:
        """Lines on the captions of a person whose images are elsewhere or have changed."""
        notes = []
        if self.renamed:
            notes.append(f"captions of a person that stay with a renamed or moved image: {self.renamed:,}")
        if self.absent:
            notes.append(f"captions of a person whose images are not there: {self.absent:,}, kept until they are")
        if self.changed:
            notes.append("captions of a person whose images have changed; look whether they still fit:")
            notes.append(show_list(self.changed))
        return notes

    @property
    def sidecars(self) -> int | None:
        """Files written beside images, if requested."""
        return self.files.sidecars

    @property
    def embedded(self) -> EmbedSummary | None:
        """The result for the image files, if captions were written into them."""
        return self.files.embedded


def caption_folder(
    images: ImagesOf,
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

    `images` may also be several images, whose keys are their paths as given, or a feature store: then its rows are
    captioned, and no image is opened. Several folders in `model` form an ensemble. Rows of an earlier table are kept if
    model, settings and image have not changed. Captions that a person changed in it are kept whatever changes, stay
    with an image that is renamed, and go into every other file; `table.redo_corrected` forgets them.

    `table` is the table's format, which captions are flagged, and which other files are written: a gallery, a text
    file beside each image, copies of tars. `embed_into` is a folder for copies of the images that contain their
    captions, or "images" to write into the images themselves. `cache` describes where features are stored and how
    missing ones are extracted.

    `overwrite` replaces an `output` that is not a table of captions, a cache whose features do not match the model, and
    sidecars and descriptions that another program wrote; "made" replaces only an `output` and a cache that an earlier
    run made for something else.

    Raises InputError if there is no image or none can be read (the table is written even then), or `output` is another
    kind of file or has the name of one; WeightsError if the backbone's weights are not the model's, SpecMismatchError
    if the features in the cache do not match the model. Raises for models that do not match each other as
    `Captioner.load` does.
    """
    started = time.monotonic()
    machine = cache.machine
    require_machine(machine)
    models, output = read_models(model, weights_later=True), Path(output)
    limit_memory(machine.memory)
    load = cache_result(partial(_load_captioner, models, machine.device))
    task = prepare_captions(images, output, table, cache.features, embed_into=embed_into, overwrite=overwrite)
    companions, store_path = task.companions, task.store_path
    if task.found is None:
        source = open_source(store_path, cache.features, models.spec)
    else:
        source = extract_source(
            task.found, store_path, models.spec, cache, replaces=bool(overwrite), before_work=load, progress=progress
        )
    captioning_started = time.monotonic()
    updated = _update_table(
        output,
        source,
        models,
        load,
        search=search,
        table=task.table,
        corrections=companions.corrections if companions else (),
        keep_edited=overwrite is not True,
        progress=progress,
    )
    captioned = len(source.keys) - len(source.failures)
    if source.extraction is not None:
        is_all_made = updated.made >= captioned  # else the time shows no speed
        captioning_s = time.monotonic() - captioning_started if is_all_made else None
        extraction = replace(source.extraction, left_out=task.left_out)
        append_record(source.path, extraction.record(task.images, captioned=captioned, captioning_s=captioning_s))
    if companions is not None:
        companions.write_gallery(workers=machine.workers, progress=progress)
    if not captioned and source.keys:
        raise InputError(f"{task.images}: none of {len(source.keys)} images can be read; the reasons are in {output}")
    files = companions.write(progress=progress) if companions is not None else WrittenFiles()
    return FolderSummary(
        found=len(source.keys),
        cached=source.extraction.cached if source.extraction else len(source.keys),
        captioned=captioned,
        made=updated.made,
        corrections=updated.corrections,
        reviewed=updated.reviewed,
        renamed=updated.renamed,
        absent=updated.absent,
        changed=updated.changed,
        failures=source.failures,
        features_path=source.path,
        duration_s=time.monotonic() - started,
        files=files,
        left_out=task.left_out,
    )


def _load_captioner(models: TrainedModels, device: str) -> "Captioner":
    """The decoder; torch takes seconds to import, so a run without work does without."""
    from captionmill.stages.decoding.captioner import Captioner

    return Captioner.of(models, device=device)


def _update_table(
    output: Path,
    source: CaptionSource,
    models: TrainedModels,
    load: "Callable[[], Captioner]",
    *,
    search: SearchConfig,
    table: TableConfig,
    corrections: Sequence[Review],
    keep_edited: bool,
    progress: Progress,
) -> TableSummary:
    """Bring the table up to date."""
    made_with = row_settings(models, search, table)
    low_confidence = made_with["low_confidence"]
    if low_confidence is None:
        _logger.warning("the model has no usual confidence; pass `low_confidence` to flag captions below it")
    make_rows = partial(_make_rows, source, load, search=search, low_confidence=low_confidence, progress=progress)
    wanted = WantedTable(
        source.keys,
        source.row_sources(),
        made_with,
        table.format or "csv",
        with_alternatives=search.alternatives > 0,
        is_as_wanted=partial(_is_as_wanted, made_with),
        contents_of=source.contents_of,
        features_of=source.features_of,
    )
    return update_captions(
        output,
        wanted,
        make_rows,
        corrections=corrections,
        keep_edited=keep_edited,
        withdraw_reviews=table.redo_corrected,
    )


def row_settings(models: TrainedModels, search: SearchConfig, table: TableConfig) -> dict[str, Any]:
    """The settings that rows are made with; a row is made again if they differ."""
    low_confidence, search = table.low_confidence, models.fit_search(search)
    return {
        "models": [model_digest(folder) for folder in models.folders],
        "search": asdict(search),
        "low_confidence": usual_low_confidence(models.bundles, search) if low_confidence is None else low_confidence,
    }


def _is_as_wanted(wanted: Mapping[str, Any], made_with: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether the caption of `row` is the one that is `wanted`, though it is of a version with fewer settings.

    Then any word could follow itself, and nothing was re-ranked.
    """
    search = {
        "repeat_words": wanted["search"]["repeat_words"],
        "rerank": "none",
        "candidates": wanted["search"]["candidates"],
        **made_with["search"],
    }
    return {**made_with, "search": search} == wanted and (search["repeat_words"] or not repeats_word(row["caption"]))


def _make_rows(
    source: CaptionSource,
    load: "Callable[[], Captioner]",
    keys: Sequence[str],
    *,
    search: SearchConfig,
    low_confidence: float | None,
    progress: Progress,
) -> Iterator[CaptionRow]:
    """The rows of `keys`, in that order."""
    reasons, store = source.reasons, source.store
    readable = [key for key in keys if key not in reasons]
    captions: Iterator[tuple[str, Caption]] = iter(())
    if store is not None and readable:
        captions = load().captions(store, readable, search, progress=progress)
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
