"""Stage one: images in, a feature store out. Done work is skipped, unreadable images are listed, nothing is lost."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from captionmill.data.csv_tables import write_failures
from captionmill.data.errors import InputError, StoreAccessError, StoreError
from captionmill.data.features.log import ExtractionRecord, append_record
from captionmill.data.features.mirror import StoreMirror, local_store
from captionmill.data.features.parts import part_paths
from captionmill.data.features.shard import Shard, shard_of, shard_path
from captionmill.data.features.spec import join_engines, mixture_note
from captionmill.data.features.store import FeatureStore, delete_store, replace_store
from captionmill.data.features.writer import FeatureWriter, lock_store
from captionmill.data.files import require_other_file
from captionmill.data.images.find import search_images
from captionmill.data.images.lists import ImagesOf, ListedImages, as_images
from captionmill.data.images.read import ImageFile
from captionmill.data.images.walk import PassedOver
from captionmill.data.paths import as_location
from captionmill.data.progress import Progress, no_progress
from captionmill.data.urls import is_url, local_path
from captionmill.stages.encoding.encoder import Encoder, build_encoder
from captionmill.stages.encoding.loader import Failure
from captionmill.stages.encoding.meter import Meter
from captionmill.stages.encoding.missing import as_made, find_missing, find_unlisted
from captionmill.stages.encoding.share import ShareResult
from captionmill.stages.encoding.spread import Spread, run_tasks
from captionmill.stages.fields import require_least
from captionmill.stages.machine import choose_workers, versions
from captionmill.stages.settings import ExtractConfig

FAILURES_NAME = "failures.csv"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractSummary:
    """What one extraction did; `found` = `cached` + `extracted` + the number of `failures`."""

    found: int
    """Images under the folder, or in the list."""
    cached: int
    """Images that were already in the store and have not changed since."""
    extracted: int
    """Images added to the store."""
    failures: tuple[Failure, ...]
    """Images that could not be read, with reasons."""
    engine: str
    """Device, engine and precision; "" if there was nothing to do."""
    duration_s: float
    """Seconds from reading the first image to closing the store."""
    unlisted: int = 0
    """Rows whose image was not found and is not in a folder or tar that cannot be read now."""
    pruned: int = 0
    """How many of these were removed."""
    meter: Meter = field(default_factory=Meter)
    """Where the time went."""
    advice: str = ""
    """What limits the speed, and what to do about it."""
    output: Path | str = ""
    """The store that was written; a shard has its own name."""
    failures_name: str = ""
    """The table of failures, beside the store."""
    left_out: PassedOver = field(default_factory=PassedOver)
    """What the search passed over, such as thumbnails and hidden files."""

    @classmethod
    def of(
        cls,
        results: Sequence[ShareResult],
        output: Path,
        *,
        found: int,
        missing: int,
        spread: Spread | None,
        started: float,
    ) -> "ExtractSummary":
        """Of an extraction that began at `started` (`time.monotonic`), from the results of its shares."""
        meter = Meter()
        for result in results:
            meter += result.meter
        engine = next((result.engine for result in results if result.engine), "")
        return cls(
            found=found,
            cached=found - missing,
            extracted=sum(result.extracted for result in results),
            failures=tuple(sorted((failure for result in results for failure in result.failures), key=lambda f: f.key)),
            engine=engine,
            duration_s=time.monotonic() - started,
            meter=meter,
            advice=meter.advice(
                cores=max(1, choose_workers(0) // (spread.processes if spread else 1)) if meter.images else 1,
                engine=engine,
            ),
            output=output,
        )

    def record(
        self, images: Path | str | ListedImages, *, captioned: int | None = None, captioning_s: float | None = None
    ) -> ExtractionRecord:
        """The record of this extraction of `images`, ending now, for the log beside the store."""
        return ExtractionRecord(
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            images=str(images.resolve() if isinstance(images, Path) else images),
            found=self.found,
            cached=self.cached,
            extracted=self.extracted,
            failed=len(self.failures),
            duration_s=self.duration_s,
            engine=self.engine,
            **self.meter.fractions(),
            advice=self.advice if self.extracted else "",
            captioned=captioned,
            captioning_s=captioning_s,
            left_out=self.left_out.describe(),
        )


@dataclass(frozen=True)
class StoreLayout:
    """How the files of a store are written."""

    shard: Shard | None = None
    """The piece of a list of images that the store holds; None for all of them."""
    in_one_file: bool = False
    """Whether all parts are joined into the main file, however few they are."""
    on_change: Callable[[Path], None] | None = None
    """Called with each file of the store that was written or deleted."""


def extract(
    images: ImagesOf,
    output: Path | str,
    config: ExtractConfig = ExtractConfig(),
    *,
    overwrite: bool = False,
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
    prune: bool = False,
    spread: Spread | None = None,
    progress: Progress = no_progress,
) -> ExtractSummary:
    """Cache the features of every image of `images` in the store `output`; either may be a URL.

    `images` is a folder, a list of paths or URLs, a tar of images, or a folder of such tars; or several images,
    whose keys are their paths as given. Images already in the store are skipped unless their file has changed.
    Unreadable ones are listed in `failures.csv` beside it, or STORE.failures.csv for a shard and `config.own_failures`.

    `overwrite` makes the store from scratch; the old one stays until the new one is complete. `limit` stops after that
    many images of the sorted list. `shard` (I, N) extracts part I of N of the list into its own store, named by
    `shard_path`, for `merge`. `prune` removes rows whose image is gone. `spread` uses several processes.

    Raises InputError if there is no image or none can be read (a shard succeeds even then, unless none of its files
    could be reached), WeightsError for unavailable weights, SpecMismatchError if the store was made with other weights
    or preprocessing.
    """
    output = as_location(local_path(output))
    require_least("limit", limit, 1)
    if prune and (shard or limit):
        raise InputError("`prune` needs the whole list of images: leave out `limit` and `shard`")
    if spread is not None and not spread.this_machine and is_url(output):
        raise InputError(f"{output}: a cluster writes to storage that its machines share; name a path, not a URL")
    images = as_images(images)
    if isinstance(images, Path) and not is_url(output):
        require_other_file(Path(output), images)
    search = search_images(images)
    found = search.found[:limit]
    part_of = None
    others: list[Path] = []
    if shard is not None:
        part_of = Shard.of([image.key for image in found], *shard)
        found = list(shard_of(found, *shard))
        if not is_url(output):
            others = [Path(shard_path(output, index, shard[1])) for index in range(1, shard[1] + 1)]
        output = shard_path(output, *shard)
    with local_store(output) as (path, mirror), lock_store(path) if overwrite else nullcontext():
        config = config if overwrite else as_made(path, config, others)
        encoder = build_encoder(config)
        target = path.with_name(f".{path.name}.new") if overwrite else path
        if overwrite and not _can_resume(target, encoder, config, {image.key for image in found}):
            delete_store(target)
        summary = extract_images(
            found,
            target,
            encoder,
            config,
            layout=StoreLayout(part_of, overwrite, mirror.push if mirror and not overwrite else None),
            prune=prune,
            spread=spread,
            progress=progress,
        )
        summary = replace(summary, left_out=search.left_out)
        is_own = config.own_failures or shard is not None
        failures_path = path.with_suffix(f".{FAILURES_NAME}") if is_own else path.with_name(FAILURES_NAME)
        if summary.failures or failures_path.exists() or mirror:  # an old one may exist at the URL
            write_failures(failures_path, [(failure.key, failure.reason) for failure in summary.failures])
            if mirror:
                mirror.push(failures_path)
        if mirror is None:  # not every kind of URL can be appended to
            append_record(path, summary.record(images))
        # a shard without readable images succeeds: an error would block the merge of its job. But if none of its files
        # could be reached, its machine may lack the storage
        is_done_shard = shard is not None and any(failure.was_read for failure in summary.failures)
        if found and not summary.cached + summary.extracted and not is_done_shard:
            first = summary.failures[0]
            raise InputError(
                f"{images}: none of {summary.found} images can be read ({first.key}: {first.reason}); "
                f"see {failures_path.name} beside {output}"
            )
        if overwrite:
            _take_place(target, path, mirror)
    return replace(summary, output=output, failures_name=failures_path.name, unlisted=0 if limit else summary.unlisted)


def extract_images(
    found: Sequence[ImageFile],
    output: Path,
    encoder: Encoder,
    config: ExtractConfig,
    *,
    layout: StoreLayout = StoreLayout(),
    prune: bool = False,
    spread: Spread | None = None,
    before_work: Callable[[], object] = lambda: None,
    progress: Progress = no_progress,
) -> ExtractSummary:
    """Add the features of the images of `found` that the store `output` lacks; arguments and errors as in `extract`.

    `before_work` is called before the first image is encoded, and not if there is none.
    """
    started = time.monotonic()
    results: list[ShareResult] = []
    shard = layout.shard
    with FeatureWriter(
        output,
        encoder.spec,
        dtype=config.dtype,
        made_by=versions(),
        flush_every=config.flush_every,
        shard=shard,
        in_one_file=layout.in_one_file or shard is not None,
        on_change=layout.on_change,
    ) as writer:
        missing = find_missing(found, writer.store)
        unlisted = find_unlisted(writer.store.keys, found) if writer.store else set()
        if prune or shard is not None:  # a shard's store holds only its part of the present list
            writer.drop(unlisted)
        for result in run_tasks(
            missing, writer.new_parts, encoder, config, spread=spread, before_work=before_work, progress=progress
        ):
            results.append(result)
            if result.engine:
                makers = [writer.store.made_by] if writer.store else []
                writer.made_by |= join_engines([*makers, writer.made_by, {"engine": result.engine}])
            # an image that cannot be reached now keeps its row; a file that is no longer an image loses it
            if writer.store is not None:
                gone = (failure.key for failure in result.failures if failure.was_read)
                writer.drop(key for key in gone if key in writer.store)
        if shard is not None:
            writer.shard = replace(shard, failed=sum(len(result.failures) for result in results))
    if any(result.engine for result in results) and (note := mixture_note(writer.made_by)):
        _logger.warning("%s: %s", output, note)
    summary = ExtractSummary.of(results, output, found=len(found), missing=len(missing), spread=spread, started=started)
    return replace(summary, unlisted=len(unlisted), pruned=len(unlisted) if prune or shard is not None else 0)


def _take_place(target: Path, path: Path, mirror: StoreMirror | None) -> None:
    """Replace the old store by the finished store `target`."""
    old_parts = part_paths(path)
    replace_store(target, path)
    if mirror:
        for changed in (*old_parts, path):
            mirror.push(changed)


def _can_resume(target: Path, encoder: Encoder, config: ExtractConfig, keys: set[str]) -> bool:
    """Whether an interrupted `overwrite` run left rows of the same kind, and only of these images."""
    try:
        store = FeatureStore.open(target)
    except StoreAccessError:  # nothing is known about what is in it
        raise
    except StoreError:
        return False
    return store.dtype == config.dtype and not store.spec.differences(encoder.spec) and keys.issuperset(store.keys)
