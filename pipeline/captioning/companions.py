"""Files written along with a table of captions: text files beside images, captions inside images, a gallery page.

They are prepared before any work, so that a file that cannot be written is reported at once, and written when the table
is complete.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from captionmill.data.errors import InputError
from captionmill.data.files import require_other_file
from captionmill.data.images.read import ImageFile
from captionmill.data.paths import as_path
from captionmill.data.progress import Progress
from captionmill.data.tables.formats import read_captions
from captionmill.data.tables.review import Review
from captionmill.data.urls import is_url
from captionmill.pipeline.captioning.embedding import Embedding, EmbedSummary
from captionmill.pipeline.captioning.sidecars import Sidecars
from captionmill.pipeline.pages.gallery import write_gallery
from captionmill.stages.settings import TableConfig

EmbedInto = Path | Literal["images"]


class Companions:
    """The companion files of one table."""

    def __init__(
        self,
        images: Path | str,
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
        `overwrite` replaces sidecars and descriptions that another program wrote.
        """
        local = None if is_url(images) else Path(images)
        self._found, self._table, self._config, self._overwrite = found, table, config, overwrite
        self._title = f"Captions of {local.resolve().name if local else images}"
        self._gallery = as_path(config.gallery)
        if self._gallery is not None:
            if self._gallery in (table, store):
                raise InputError(f"{self._gallery}: cannot be the gallery and another output at once")
            require_other_file(self._gallery, local, store, table)
        self._sidecars: Sidecars | None = None
        self._embedding: Embedding | None = None
        if config.sidecar is not None:
            others = [path for path in (store, local) if path]
            self._sidecars = Sidecars(found, config.sidecar, table, others=others, overwrite=overwrite)
        if embed_into is not None:
            folder = None if embed_into == "images" else Path(embed_into)
            self._embedding = Embedding(images, found, folder)

    @property
    def corrections(self) -> list[Review]:
        """What a person corrected in the files beside the images."""
        return self._sidecars.corrections if self._sidecars else []

    def write_gallery(self, *, workers: int, progress: Progress) -> None:
        """Write the page, if requested; `workers` threads decode its images."""
        if self._gallery is not None:
            rows = list(read_captions(self._table))
            write_gallery(
                self._gallery, self._title, self._found, rows, table=self._table, workers=workers, progress=progress
            )

    def write_sidecars(self, *, progress: Progress) -> int | None:
        """The number of files written beside images; None if they are not requested."""
        return self._sidecars.write(read_captions(self._table), progress=progress) if self._sidecars else None

    def embed(self, *, progress: Progress) -> EmbedSummary | None:
        """The result for the image files; None if captions are not written into them."""
        if self._embedding is None:
            return None
        return self._embedding.write(read_captions(self._table), overwrite=self._overwrite, progress=progress)
