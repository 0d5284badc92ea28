"""What a person wrote stays with an image that is renamed, and is named where its image is gone or another one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import make_model
from PIL import Image

from captionmill.data.tables.formats import read_captions
from captionmill.pipeline.captioning.folder import FolderSummary, caption_folder
from captionmill.pipeline.captioning.source import CacheConfig
from captionmill.pipeline.summaries import written_lines
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.settings import ExtractConfig, SearchConfig
from captionmill.stages.table_settings import TableConfig

MACHINE = ExtractConfig(
    backbone="scenes-resnet14", preprocess="squash", image_size=32, engine="torch", precision="fp32", device="cpu"
)


class Album:
    """A folder of two images and the table of their captions."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.images, self.table, self._model = folder / "album", folder / "t.csv", model
        self.images.mkdir()
        for number, name in enumerate(("a.png", "b.png")):
            self.draw(name, number)

    def draw(self, name: str, seed: int) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.images / name)

    def caption(self, place: str = ".", *, sidecar: str | None = None, other_table: bool = False) -> FolderSummary:
        """Caption the folder, or one in it; `other_table`: into another table, with the same cache of features."""
        table = self.table.with_name("other.csv") if other_table else self.table
        cache = CacheConfig(features=self.table.with_name("cache.h5"), machine=MACHINE)
        search = SearchConfig(beam_size=3, max_length=5)
        return caption_folder(
            self.images / place, self._model, table, search, table=TableConfig(sidecar=sidecar), cache=cache
        )

    def exchange(self, first: str, second: str) -> None:
        for old, new in ((first, "x.png"), (second, first), ("x.png", second)):
            (self.images / old).rename(self.images / new)

    def write(self, key: str, caption: str) -> None:
        """Put a caption into the table, as a person does in an editor."""
        lines = self.table.read_text().splitlines()
        changed = [f"{key},{caption},,,ok," if line.startswith(f"{key},") else line for line in lines]
        assert changed != lines
        self.table.write_text("\n".join(changed) + "\n")

    @property
    def captions(self) -> dict[str, str]:
        """Those of a person."""
        return {row.path: row.caption for row in read_captions(self.table) if row.status in ("corrected", "accepted")}


@pytest.fixture
def album(thin_weights: Path, tmp_path: Path) -> Album:
    encoder = build_encoder(ExtractConfig(**vars(MACHINE) | {"weights": str(thin_weights)}))
    found = Album(tmp_path, make_model(tmp_path / "model", encoder.spec))
    found.caption()
    found.write("a.png", "Anna climbs")
    found.caption()
    assert found.captions == {"a.png": "Anna climbs"}
    return found


def notes(summary: FolderSummary) -> list[str]:
    return written_lines(summary)[1 if summary.reviewed else 0 :]


def test_a_correction_follows_an_image_that_is_renamed_or_moved_and_back(album: Album) -> None:
    (album.images / "new").mkdir()
    (album.images / "a.png").rename(album.images / "new/anna.png")
    summary = album.caption()
    assert album.captions == {"new/anna.png": "Anna climbs"}
    assert notes(summary) == ["captions of a person that stay with a renamed or moved image: 1"]
    assert notes(album.caption()) == []
    album.write("new/anna.png", "Anna is on top")
    album.caption()
    (album.images / "new/anna.png").rename(album.images / "c.png")
    album.caption()
    assert album.captions == {"c.png": "Anna is on top"}


def test_a_copy_has_a_caption_of_its_own_while_the_image_is_there(album: Album) -> None:
    shutil.copy(album.images / "a.png", album.images / "copy.png")
    assert notes(album.caption()) == []
    assert album.captions == {"a.png": "Anna climbs"}


def test_corrections_of_images_that_are_gone_are_kept_and_counted(album: Album) -> None:
    (album.images / "a.png").rename(album.images.parent / "a.png")
    summary = album.caption()
    assert album.captions == {}
    assert (summary.reviewed, summary.absent) == (0, 1)
    assert notes(summary) == ["captions of a person whose images are not there: 1, kept until they are"]
    (album.images.parent / "a.png").rename(album.images / "a.png")
    assert notes(album.caption()) == []
    assert album.captions == {"a.png": "Anna climbs"}


def test_another_image_in_the_place_of_a_corrected_one_is_named(album: Album) -> None:
    album.draw("a.png", 7)
    summary = album.caption()
    assert album.captions == {"a.png": "Anna climbs"}
    assert notes(summary) == [
        "captions of a person whose images have changed; look whether they still fit:",
        "  a.png",
    ]


def test_an_image_whose_metadata_alone_changed_is_not_named(album: Album) -> None:
    path = album.images / "a.png"
    with Image.open(path) as image:
        image.save(path, exif=Image.Exif(), dpi=(300, 300), compress_level=1)
    assert notes(album.caption()) == []
    path.rename(album.images / "c.png")
    album.caption()
    assert album.captions == {"c.png": "Anna climbs"}


def test_corrections_of_images_that_exchange_their_names_are_exchanged(album: Album) -> None:
    album.write("b.png", "Ben waits")
    album.caption()
    album.exchange("a.png", "b.png")
    summary = album.caption()
    assert album.captions == {"a.png": "Ben waits", "b.png": "Anna climbs"}
    assert notes(summary) == ["captions of a person that stay with a renamed or moved image: 2"]


def test_an_exchange_is_seen_whoever_extracted_the_images_again(album: Album) -> None:
    album.exchange("a.png", "b.png")
    album.caption(other_table=True)
    album.caption()
    assert album.captions == {"b.png": "Anna climbs"}
    album.exchange("a.png", "b.png")
    album.table.with_name("cache.h5").unlink()
    album.caption()
    assert album.captions == {"a.png": "Anna climbs"}


def test_a_correction_waits_for_its_image_though_another_with_a_correction_takes_its_name(album: Album) -> None:
    album.write("b.png", "Ben waits")
    album.caption()
    (album.images / "a.png").rename(album.images.parent / "a.png")
    (album.images / "b.png").rename(album.images / "a.png")
    summary = album.caption()
    assert album.captions == {"a.png": "Ben waits"}
    assert (summary.renamed, summary.absent) == (1, 1)
    (album.images.parent / "a.png").rename(album.images / "again.png")
    assert album.caption().absent == 0
    assert album.captions == {"a.png": "Ben waits", "again.png": "Anna climbs"}


def test_a_folder_in_the_folder_leaves_the_captions_of_the_others(album: Album) -> None:
    (album.images / "sub").mkdir()
    (album.images / "b.png").rename(album.images / "sub/a.png")
    album.caption()
    album.write("sub/a.png", "Ben waits")
    album.caption()
    assert album.captions == {"a.png": "Anna climbs", "sub/a.png": "Ben waits"}
    album.caption("sub")
    assert album.captions == {"a.png": "Ben waits"}
    album.caption()
    assert album.captions == {"a.png": "Anna climbs", "sub/a.png": "Ben waits"}


def test_corrections_follow_images_that_are_numbered_again(album: Album) -> None:
    for old, new in (("a", "c"), ("b", "a")):  # that of b.png is the model's
        (album.images / f"{old}.png").rename(album.images / f"{new}.png")
    summary = album.caption()
    assert album.captions == {"c.png": "Anna climbs"}
    assert (summary.renamed, summary.absent, summary.changed) == (1, 0, ())


def test_a_correction_stays_with_the_original_of_an_image_that_is_edited(album: Album) -> None:
    (album.images / "originals").mkdir()
    shutil.copy(album.images / "a.png", album.images / "originals/a.png")
    with Image.open(album.images / "a.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(album.images / "a.png")
    album.caption()
    assert album.captions == {"originals/a.png": "Anna climbs"}


def test_where_the_image_of_a_correction_is_gone_and_another_has_its_name_the_name_is_shown(album: Album) -> None:
    (album.images / "b.png").replace(album.images / "a.png")
    assert album.caption().changed == ("a.png",)
    assert album.captions == {"a.png": "Anna climbs"}


def test_a_sidecar_that_is_renamed_with_its_image_is_written_anew(album: Album) -> None:
    album.caption(sidecar=".txt")
    (album.images / "a.txt").write_text("Anna climbs, her first time\n")
    album.caption(sidecar=".txt")
    for name in ("a.png", "a.txt"):
        (album.images / name).rename(album.images / name.replace("a", "anna"))
    album.caption(sidecar=".txt")
    assert album.captions == {"anna.png": "Anna climbs, her first time"}
    assert (album.images / "anna.txt").read_text() == "Anna climbs, her first time\n"


def test_sidecars_that_are_exchanged_with_their_images_keep_their_captions(album: Album) -> None:
    album.write("b.png", "Ben waits")
    album.caption(sidecar=".txt")
    album.exchange("a.png", "b.png")
    album.exchange("a.txt", "b.txt")
    album.caption(sidecar=".txt")
    assert album.captions == {"a.png": "Ben waits", "b.png": "Anna climbs"}
    assert (album.images / "a.txt").read_text() == "Ben waits\n"
