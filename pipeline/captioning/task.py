"""What a run will caption and where to: found and checked before any work, and changing nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from captionmill.data.errors import InputError
from captionmill.data.features.store import cache_path_for, is_store_file
from captionmill.data.files import require_other_file
from captionmill.data.images.find import search_images
from captionmill.data.images.lists import ImagesOf, ListedImages, as_images
from captionmill.data.images.read import ImageFile
from captionmill.data.images.walk import PassedOver
from captionmill.data.paths import AnyPath, as_path
from captionmill.data.tables.formats import format_of, is_caption_table
from captionmill.pipeline.captioning.companions import Companions, EmbedInto
from captionmill.stages.table_settings import TableConfig


@dataclass(frozen=True)
class CaptionTask:
    """The images of one run and its outputs."""

    images: Path | str | ListedImages
    table: TableConfig
    """With the format that the table will have."""
    store_path: Path
    """The cache of features, or the store that is captioned."""
    found: Sequence[ImageFile] | None
    """None if the rows of an existing store are captioned."""
    companions: Companions | None
    left_out: PassedOver


def prepare_captions(
    images: ImagesOf,
    output: Path,
    table: TableConfig,
    features: AnyPath | None,
    *,
    embed_into: EmbedInto | None,
    overwrite: bool | Literal["made"],
) -> CaptionTask:
    """Find the images and check all outputs; arguments and errors as for `caption_folder`."""
    images = as_images(images)
    table = replace(table, format=format_of(output, table.format))
    has_texts = any((table.sidecar, table.metadata_jsonl, table.tars, embed_into))
    if not (table.wording.is_plain or has_texts):
        raise InputError(
            "`prefix`, `suffix` and `caption_template` apply to files that are written with the table: set `sidecar`, "
            "`metadata_jsonl`, `tars` or `embed_metadata` too"
        )
    if isinstance(images, Path) and images.is_file() and is_store_file(images):
        if has_texts or table.gallery is not None:
            raise InputError(f"{images}: holds features, not images to write captions to; give the images themselves")
        require_other_file(output, images)
        _require_replaceable(output, overwrite=bool(overwrite))
        return CaptionTask(images, table, images, None, None, PassedOver())
    search = search_images(images)
    store_path = as_path(features) or cache_path_for(output)
    require_other_file(output, images if isinstance(images, Path) else None, store_path)
    if store_path == output:
        raise InputError(f"{output}: cannot be the table and the cache of features at once")
    _require_replaceable(output, overwrite=bool(overwrite))
    companions = Companions(
        images, search.found, output, store_path, table, embed_into=embed_into, overwrite=overwrite is True
    )
    return CaptionTask(images, table, store_path, search.found, companions, search.left_out)


def _require_replaceable(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not (overwrite or is_caption_table(output)):
        raise InputError(f"{output}: not a table of captions; pass `overwrite` to replace it, or another `output`")
