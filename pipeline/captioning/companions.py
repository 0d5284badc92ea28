"""Files written along with a table of captions: text files beside images, captions inside images, a gallery page.

They are prepared before any work, so that a file that cannot be written is reported at once, and written when the table
is complete. Those that few runs write are imported only then: a run without work takes a third of a second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from captionmill.data.errors import InputError
from captionmill.data.images.lists import ListedImages
from captionmill.data.images.read import ImageFile
from captionmill.data.paths import as_path
from captionmill.data.progress import Progress
from captionmill.data.regular import require_inside
from captionmill.data.tables.formats import read_captions, require_other_output
from captionmill.data.tables.review import Review
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.captioning.embedding import Embedding, EmbedSummary
from captionmill.pipeline.captioning.metadata_lines import MetadataLines
from captionmill.pipeline.captioning.shards import Shards, ShardSummary
from captionmill.pipeline.captioning.sidecars import XMP_SUFFIX, Sidecars, image_path_of
from captionmill.stages.table_settings import TableConfig

if TYPE_CHECKING:
    from captionmill.pipeline.captioning.xmp_sidecars import XmpSidecars

EmbedInto = Path | Literal["images"]


class Companions:
    """The companion files of one table."""

    def __init__(
        self,
        images: Path | str | ListedImages,
        found: Sequence[ImageFile],
        table: Path,
        store: Path,
        config: TableConfig,
        *,
        embed_into: EmbedInto | None,
        overwrite: bool,
    ) -> None:
        """For the images `found` under `images`, whose features are in `store`; InputError if one would overwrite
        another file.

        Captions go into copies of the images in the folder `embed_into`, or with "images" into the images themselves.
        `overwrite` replaces files and descriptions that another program wrote, except XMP sidecars.
        """
        local = images if isinstance(images, Path) else None
        self._found, self._table = found, table
        self._title = f"Captions of {local.resolve().name if local else images}"
        self._gallery = as_path(config.gallery)
        if self._gallery is not None:
            if self._gallery in (table, store):
                raise InputError(f"{self._gallery}: cannot be the gallery and another output at once")
            require_other_output(self._gallery, local, store, table)
        wording, others = config.wording, [path for path in (store, local) if path]
        self._sidecars: Sidecars | XmpSidecars | None = None
        self._metadata: MetadataLines | None = None
        self._shards: Shards | None = None
        self._embedding: Embedding | None = None
        if config.sidecar is not None and local is not None and local.is_dir():
            require_inside(local, (image_path_of(image, "`sidecar`") for image in found))
        if config.sidecar is not None and config.sidecar.lower() == XMP_SUFFIX:
            from captionmill.pipeline.captioning import xmp_sidecars

            self._sidecars = xmp_sidecars.XmpSidecars(found, config.sidecar, table, wording=wording, others=others)
        elif config.sidecar is not None:
            self._sidecars = Sidecars(found, config.sidecar, table, wording=wording, others=others, overwrite=overwrite)
        if (metadata := as_path(config.metadata_jsonl)) is not None:
            self._metadata = MetadataLines(found, metadata, table, wording=wording, others=others, overwrite=overwrite)
        if (tars := as_path(config.tars)) is not None:
            self._shards = Shards(images, found, tars, config.tar_suffix, table, wording=wording, overwrite=overwrite)
        if embed_into is not None:
            folder = None if embed_into == "images" else Path(embed_into)
            self._embedding = Embedding(images, found, folder, table, wording=wording, overwrite=overwrite)

    @property
    def corrections(self) -> list[Review]:
        """What a person corrected in the files beside the images."""
        places = (self._sidecars, self._metadata, self._embedding)
        return [correction for place in places if place for correction in place.corrections]

    def write_gallery(self, *, workers: int, progress: Progress) -> None:
        """Write the page, if requested; `workers` threads decode its images."""
        if self._gallery is not None:
            from captionmill.pipeline.pages.gallery import write_gallery

            rows = list(read_captions(self._table))
            write_gallery(
                self._gallery, self._title, self._found, rows, table=self._table, workers=workers, progress=progress
            )

    def write(self, *, progress: Progress) -> "WrittenFiles":
        """Write all others that are requested."""
        sidecars = self._sidecars.write(self._rows(), progress=progress) if self._sidecars else None
        if self._metadata:
            self._metadata.write(self._rows(), progress=progress)
        shards = self._shards.write(self._rows(), progress=progress) if self._shards else None
        embedded = self._embedding.write(self._rows(), progress=progress) if self._embedding else None
        kept = tuple(self._sidecars.kept) if self._sidecars else ()
        return WrittenFiles(sidecars, kept, embedded, shards)

    def _rows(self) -> Iterator[CaptionRow]:
        return read_captions(self._table)


@dataclass(frozen=True)
class WrittenFiles:
    """The result for the files that were written with a table."""

    sidecars: int | None = None
    """Files written beside images, if requested; those that were up to date are not counted."""
    kept_sidecars: tuple[str, ...] = ()
    """Keys of images whose sidecar keeps what somebody else wrote."""
    embedded: EmbedSummary | None = None
    """The result for the image files, if captions were written into them."""
    shards: ShardSummary | None = None
    """The result for copies of tars, if requested."""
