"""A folder of images becomes a table, and again, and after a kill; captions get beside the images and into them."""

import os
import shutil
import signal
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from builders import make_model, make_rows, make_store
from PIL import Image
from processes import Child

from captionmill.data.errors import InputError, ModelError, SpecMismatchError
from captionmill.data.features.store import FeatureStore
from captionmill.data.images.description import check_description, write_description
from captionmill.data.models.bundle import LOW_CONFIDENCE, read_bundle
from captionmill.data.tables.formats import read_captions
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.captioning.embedding import EmbedSummary
from captionmill.pipeline.captioning.folder import FolderSummary, caption_folder
from captionmill.pipeline.captioning.source import CacheConfig
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.encoding.share import ShareResult, ShareTask
from captionmill.stages.encoding.spread import Spread
from captionmill.stages.settings import ExtractConfig, SearchConfig
from captionmill.stages.table_settings import TableConfig

MACHINE = ExtractConfig(
    backbone="scenes-resnet14", preprocess="squash", image_size=32, engine="torch", precision="fp32", device="cpu"
)
SEARCH = SearchConfig(beam_size=3, max_length=5)


@pytest.fixture
def model(thin_weights: Path, tmp_path: Path) -> Path:
    encoder = build_encoder(ExtractConfig(**vars(MACHINE) | {"weights": str(thin_weights)}))
    return make_model(tmp_path / "model", encoder.spec, scores={LOW_CONFIDENCE: 0.5})


def caption(
    images: Path | str,
    model: Path,
    output: Path,
    search: SearchConfig = SEARCH,
    *,
    embed_into: Path | Literal["images"] | None = None,
    overwrite: bool = False,
    **table: Any,
) -> FolderSummary:
    return caption_folder(
        images,
        model,
        output,
        search,
        table=TableConfig(**table),
        cache=CacheConfig(machine=MACHINE),
        embed_into=embed_into,
        overwrite=overwrite,
    )


def rows_of(table: Path) -> dict[str, CaptionRow]:
    return {row.path: row for row in read_captions(table)}


def test_a_second_run_makes_no_row_and_later_ones_only_what_changed(model: Path, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    first = caption(photos, model, table)
    assert (first.found, first.captioned, first.made, len(first.failures)) == (9, 8, 9, 1)
    before = rows_of(table)
    assert before["broken.jpg"].status == "failed"
    written = table.stat().st_mtime_ns
    assert caption(photos, model, table).made == 0
    assert table.stat().st_mtime_ns == written
    Image.new("RGB", (50, 50), (9, 9, 9)).save(photos / "red_0.png")
    (photos / "more" / "green_1.png").unlink()
    Image.new("RGB", (50, 50), (255, 255, 255)).save(photos / "new.png")
    Image.new("RGB", (50, 50), (0, 0, 0)).save(photos / "broken.jpg")
    assert caption(photos, model, table).made == 3
    caption(photos, model, tmp_path / "anew.csv")
    assert table.read_bytes() == (tmp_path / "anew.csv").read_bytes()
    assert {key for key, row in rows_of(table).items() if row.status == "ok"} == set(rows_of(table))


def test_a_finished_folder_needs_no_weights_and_damaged_ones_stop_the_rest(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    table, own = tmp_path / "t.csv", tmp_path / "own"
    shutil.copytree(model, own)
    caption(photos, own, table)
    weights = next(own.glob("decoder-*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert caption(photos, own, table).made == 0
    before, features = table.read_bytes(), (tmp_path / "t.features.h5").read_bytes()
    Image.new("RGB", (50, 50)).save(photos / "new.png")
    with pytest.raises(ModelError, match=r"is not the file that bundle\.json was written with"):
        caption(photos, own, table)
    assert (table.read_bytes(), (tmp_path / "t.features.h5").read_bytes()) == (before, features)


def test_a_folder_is_extracted_by_many_processes_and_the_table_stays_one(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    alone = caption(photos, model, tmp_path / "alone.csv")
    tasks: list[ShareTask] = []
    counts: list[int] = []

    def open_spread(images: int) -> AbstractContextManager[Spread]:
        counts.append(images)
        return nullcontext(Spread(run, 2))

    def run(function: Callable[[ShareTask], ShareResult], given: Sequence[ShareTask]) -> Iterator[ShareResult]:
        tasks.extend(given)
        return map(function, given)

    cache = CacheConfig(machine=replace(MACHINE, batch_size=1), open_spread=open_spread)
    together = caption_folder(photos, model, tmp_path / "t.csv", SEARCH, cache=cache)
    assert (counts, [len(task.images) for task in tasks]) == ([9], [2, 2, 2, 2, 1])
    assert together.failures == alone.failures
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_a_failed_image_that_is_renamed_has_its_new_name(model: Path, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    names = ("brjcykot.jpg", "nbpitdgr.jpg")
    assert zlib.crc32(names[0].encode()) == zlib.crc32(names[1].encode())  # and so are those of name and reason
    (photos / "broken.jpg").rename(photos / names[0])
    caption(photos, model, table)
    (photos / names[0]).rename(photos / names[1])
    assert caption(photos, model, table).made == 1
    assert [key for key, row in rows_of(table).items() if row.status == "failed"] == [names[1]]


def test_another_model_or_search_makes_the_table_anew(model: Path, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    caption(photos, model, table)
    assert caption(photos, model, table, search=SearchConfig(beam_size=1, max_length=5)).made == 9
    make_model(model, read_bundle(model).spec, seed=1)
    assert caption(photos, model, table).made == 9
    assert caption(photos, model, table).made == 0


def test_a_file_of_another_kind_is_not_replaced_unasked(model: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.csv"
    output.write_text("image,caption\nred_0.png,my own words\n")
    with pytest.raises(InputError, match=r"captions\.csv: not a table of captions; pass `overwrite` to replace it"):
        caption(photos, model, output)
    assert output.read_text() == "image,caption\nred_0.png,my own words\n"
    assert caption(photos, model, output, overwrite=True).made == 9
    assert caption(photos, model, tmp_path / "t").made == 9
    for table_format in ("jsonl", "csv"):
        assert caption(photos, model, tmp_path / "t", format=table_format).made == 0


def test_captions_less_sure_than_usual_are_flagged(model: Path, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    caption(photos, model, table)
    for row in rows_of(table).values():
        assert ("low-confidence" in row.flags) == (
            row.status == "ok" and row.confidence is not None and row.confidence < 0.5
        )
        assert ("cut" in row.flags) == (row.status == "ok" and len(row.caption.split()) == 5)
    assert {row.status for row in rows_of(table).values() if "low-confidence" in row.flags} == {"ok"}
    assert caption(photos, model, table, low_confidence=0.0).made == 9
    assert not any("low-confidence" in row.flags for row in rows_of(table).values())


def test_a_feature_store_is_captioned_without_its_images(model: Path, photos: Path, tmp_path: Path) -> None:
    caption(photos, model, tmp_path / "t.csv")
    for path in photos.rglob("*.*"):
        path.unlink()
    summary = caption(tmp_path / "t.features.h5", model, tmp_path / "store.csv")
    assert (summary.found, summary.cached, summary.captioned) == (8, 8, 8)
    expected = rows_of(tmp_path / "t.csv")
    del expected["broken.jpg"]
    assert rows_of(tmp_path / "store.csv") == expected
    assert caption(str(tmp_path / "t.features.h5"), model, tmp_path / "store.csv").made == 0
    for options in ({"sidecar": ".txt"}, {"embed_into": tmp_path / "copies"}):
        with pytest.raises(InputError, match="holds features, not images to write captions to"):
            caption(tmp_path / "t.features.h5", model, tmp_path / "u.csv", **options)
    with pytest.raises(InputError, match="is an input of this command"):
        caption(tmp_path / "t.features.h5", model, tmp_path / "t.features.h5")
    other = make_store(tmp_path / "other.h5", ["a.jpg"], make_rows(1))
    with pytest.raises(SpecMismatchError):
        caption(other, model, tmp_path / "store.csv")
    assert rows_of(tmp_path / "store.csv") == expected


def test_a_run_killed_while_it_decodes_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    keys = [f"{number:03d}.jpg" for number in range(1200)]
    store = make_store(tmp_path / "f.h5", keys, make_rows(1200))
    model = make_model(tmp_path / "model", FeatureStore.open(store).spec)
    caption(store, model, tmp_path / "whole.csv")
    whole = (tmp_path / "whole.csv").read_bytes()
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from captionmill.pipeline.captioning.folder import caption_folder\n"
        "from captionmill.pipeline.captioning.source import CacheConfig\n"
        "from captionmill.stages.settings import ExtractConfig, SearchConfig\n"
        "def progress(label, done, total, **_):\n"
        "    if label == 'caption' and done == int(sys.argv[4]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "caption_folder(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), progress=progress,\n"
        "               search=SearchConfig(beam_size=3, max_length=5),\n"
        "               cache=CacheConfig(machine=ExtractConfig(device='cpu')))\n"
    )
    table = tmp_path / "t.csv"
    for _ in range(2):  # of each life 512 captions are left, decoded together
        with Child(program, store, model, table, 512) as process:
            assert process.wait() == -signal.SIGKILL
        assert not table.exists()
    assert caption(store, model, table).made == 1200 - 2 * 512
    assert table.read_bytes() == whole


class TestSidecars:
    def test_lie_beside_the_images_and_are_written_once(self, model: Path, photos: Path, tmp_path: Path) -> None:
        table = tmp_path / "t.csv"
        assert caption(photos, model, table, sidecar=".txt").sidecars == 8
        for key, row in rows_of(table).items():
            path = (photos / key).with_suffix(".txt")
            assert path.exists() == (row.status == "ok")
            if row.status == "ok":
                assert path.read_text(encoding="utf-8") == f"{row.caption}\n"
        (photos / "red_0.txt").unlink()
        assert caption(photos, model, table, sidecar=".txt").sidecars == 1
        make_model(model, read_bundle(model).spec, seed=1)
        caption(photos, model, table, sidecar=".txt")
        assert (photos / "red_0.txt").read_text(encoding="utf-8") == f"{rows_of(table)['red_0.png'].caption}\n"

    def test_of_other_people_stay(self, model: Path, photos: Path, tmp_path: Path) -> None:
        table = tmp_path / "t.csv"
        (photos / "red_0.txt").write_text("my own words")
        with pytest.raises(InputError, match=r"red_0\.txt: exists already and was not written by a run into .*t\.csv"):
            caption(photos, model, table, sidecar=".txt")
        assert not table.exists()
        assert (photos / "red_0.txt").read_text() == "my own words"
        caption(photos, model, table, sidecar=".txt", overwrite=True)
        assert (photos / "red_0.txt").read_text(encoding="utf-8") == f"{rows_of(table)['red_0.png'].caption}\n"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_that_a_person_changed_are_that_persons_captions(
        self, overwrite: bool, model: Path, photos: Path, tmp_path: Path
    ) -> None:
        table = tmp_path / "t.csv"
        caption(photos, model, table, sidecar=".txt")
        (photos / "red_0.txt").write_text("mended\r\nby hand", newline="")
        summary = caption(photos, model, table, sidecar=".txt", overwrite=overwrite)
        assert (summary.corrections, summary.reviewed, summary.sidecars) == (1, 1, 1)
        assert rows_of(table)["red_0.png"] == CaptionRow("red_0.png", "mended by hand", None, status="corrected")
        make_model(model, read_bundle(model).spec, seed=1)
        summary = caption(photos, model, table, sidecar=".txt", overwrite=overwrite)
        assert (summary.corrections, summary.reviewed) == (0, 1)
        assert (photos / "red_0.txt").read_text() == "mended by hand\n"
        table.write_bytes(table.read_bytes().replace(b"mended by hand", b"mended in the table"))
        caption(photos, model, table, sidecar=".txt", overwrite=overwrite)
        assert (photos / "red_0.txt").read_text() == "mended in the table\n"

    def test_and_a_table_that_were_corrected_differently_are_refused(
        self, model: Path, photos: Path, tmp_path: Path
    ) -> None:
        table = tmp_path / "t.csv"
        caption(photos, model, table, sidecar=".txt")
        (photos / "red_0.txt").write_text("one")
        text = rows_of(table)["red_0.png"].caption
        table.write_bytes(table.read_bytes().replace(f"red_0.png,{text},".encode(), b"red_0.png,another,"))
        with pytest.raises(
            InputError,
            match=r"red_0\.png was corrected twice, as 'another' and as 'one', in the table or in files beside it",
        ):
            caption(photos, model, table, sidecar=".txt")
        assert (photos / "red_0.txt").read_text() == "one"

    @pytest.mark.parametrize("suffix", ["txt", ".png", ".", "./x", ".tar"])
    def test_have_the_ending_of_a_text_file(self, suffix: str, model: Path, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"must be the suffix of a text file, such as \.txt"):
            caption(photos, model, tmp_path / "t.csv", sidecar=suffix)

    def test_are_refused_where_two_images_would_share_one(self, model: Path, photos: Path, tmp_path: Path) -> None:
        Image.new("RGB", (9, 9)).save(photos / "red_0.bmp")
        with pytest.raises(InputError, match=r"red_0\.bmp and red_0\.png would share .*red_0\.txt; rename one of them"):
            caption(photos, model, tmp_path / "t.csv", sidecar=".txt")

    def test_leave_alone_what_is_called_like_a_damaged_tar(self, model: Path, photos: Path, tmp_path: Path) -> None:
        (photos / "red_0.tar").write_bytes(b"")
        (photos / "notes.tar").write_bytes(b"")
        (photos / "notes.txt").write_text("my own words")
        assert caption(photos, model, tmp_path / "t.csv", sidecar=".txt").sidecars == 8
        assert (photos / "notes.txt").read_text() == "my own words"
        assert rows_of(tmp_path / "t.csv")["red_0.tar"].error == "not a readable tar (empty file)"

    def test_are_not_shared_with_a_file_of_a_camera(self, model: Path, photos: Path, tmp_path: Path) -> None:
        for name in ("red_0.cr2", "aaa.svg"):
            (photos / name).write_bytes(b"II*\0\x10\0\0\0CR\2\0")
        (photos / "aaa.txt").write_text("my own words")
        assert caption(photos, model, tmp_path / "t.csv", sidecar=".txt").sidecars == 8
        assert (photos / "aaa.txt").read_text() == "my own words"
        row = rows_of(tmp_path / "t.csv")["red_0.cr2"]
        assert (row.status, row.error) == ("failed", "RAW (CR2) is not supported; convert it to JPEG or PNG")

    def test_never_replace_the_table_the_cache_or_the_list(self, model: Path, photos: Path, tmp_path: Path) -> None:
        (photos / "red_0.txt").write_text("red_0.png\n")
        with pytest.raises(InputError, match="is another file of this command"):
            caption(photos / "red_0.txt", model, tmp_path / "t.csv", sidecar=".txt", overwrite=True)
        assert (photos / "red_0.txt").read_text() == "red_0.png\n"

    def test_need_images_that_are_files(self, model: Path, photos: Path, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(photos / "red_0.png", "red_0.png")
        with pytest.raises(InputError, match="`sidecar` needs images that are files here"):
            caption(tmp_path / "a.tar", model, tmp_path / "t.csv", sidecar=".txt")


def read_description(path: Path) -> str:
    """The XMP description in an image, which is in its IPTC too where it has some."""
    exiv2 = pytest.importorskip("exiv2")
    image = exiv2.ImageFactory.open(path.read_bytes())
    image.readMetadata()
    text = str(dict(image.xmpData()["Xmp.dc.description"].value())["x-default"])
    if "Iptc.Application2.Caption" in image.iptcData():
        assert image.iptcData()["Iptc.Application2.Caption"].toString() == text
    return text


class TestEmbedding:
    TEXT = 'ein Hund läuft über 雪, "so" & <so>'

    def test_copies_hold_the_caption_and_the_same_picture(self, model: Path, photos: Path, tmp_path: Path) -> None:
        pytest.importorskip("exiv2")
        before = {path: path.read_bytes() for path in photos.rglob("*.*")}
        copies = tmp_path / "copies"
        summary = caption(photos, model, tmp_path / "t.csv", embed_into=copies)
        assert summary.embedded is not None
        assert (summary.embedded.embedded, summary.embedded.unsupported) == (8, ())
        assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before
        for key, row in rows_of(tmp_path / "t.csv").items():
            assert (copies / key).exists() == (row.status == "ok")
            if row.status == "ok":
                assert read_description(copies / key) == row.caption
                np.testing.assert_array_equal(pixels(copies / key), pixels(photos / key))
        inodes = {path: path.stat().st_ino for path in copies.rglob("*.*")}
        caption(photos, model, tmp_path / "t.csv", embed_into=copies)
        assert {path: path.stat().st_ino for path in copies.rglob("*.*")} == inodes

    def test_in_place_it_leaves_the_picture_and_what_a_person_wrote(
        self, model: Path, photos: Path, tmp_path: Path
    ) -> None:
        exiv2 = pytest.importorskip("exiv2")
        image = exiv2.ImageFactory.open(str(photos / "red_0.png"))
        image.readMetadata()
        image.xmpData()["Xmp.dc.description"] = exiv2.LangAltValue({"x-default": "Grandmother's red wall"})
        image.writeMetadata()
        Image.new("RGB", (9, 9)).save(photos / "moving.gif")
        before = {path.name: pixels(path) for path in photos.rglob("*_*.*")}
        summary = caption(photos, model, tmp_path / "t.csv", embed_into="images")
        assert summary.embedded is not None
        assert summary.embedded.described == ("red_0.png",)
        assert summary.embedded.unsupported == ("moving.gif",)
        assert read_description(photos / "red_0.png") == "Grandmother's red wall"
        for path in photos.rglob("*_*.*"):
            np.testing.assert_array_equal(pixels(path), before[path.name])
        row = rows_of(tmp_path / "t.csv")["more/green_1.png"]
        assert read_description(photos / "more" / "green_1.png") == row.caption
        caption(photos, model, tmp_path / "t.csv", embed_into="images", overwrite=True)
        assert read_description(photos / "red_0.png") == rows_of(tmp_path / "t.csv")["red_0.png"].caption

    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
    def test_every_letter_comes_back_and_no_pixel_changes(self, name: str, tmp_path: Path) -> None:
        pytest.importorskip("exiv2")
        noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        before = pixels(tmp_path / name)
        assert check_description(tmp_path / name, self.TEXT) == "missing"
        write_description(tmp_path / name, self.TEXT)
        assert read_description(tmp_path / name) == self.TEXT
        assert check_description(tmp_path / name, self.TEXT) == "same"
        assert check_description(tmp_path / name, "another of ours") == "missing"
        np.testing.assert_array_equal(pixels(tmp_path / name), before)

    def test_names_that_are_not_utf_8_long_ones_and_a_link_to_itself_stop_nothing(
        self, model: Path, photos: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("exiv2")
        long_name = "n" * 251 + ".png"
        latin_path = photos / os.fsdecode(b"caf\xe9.png")
        try:
            shutil.copy(photos / "red_0.png", latin_path)
        except OSError:
            pytest.skip("this file system takes UTF-8 names alone")
        shutil.copy(photos / "red_0.png", photos / long_name)
        (photos / "self.jpg").symlink_to("self.jpg")
        copies = tmp_path / "copies"
        summary = caption(photos, model, tmp_path / "t.csv", sidecar=".txt", embed_into=copies)
        assert summary.embedded is not None
        assert (summary.sidecars, summary.embedded.embedded, summary.embedded.unsupported) == (10, 10, ())
        words = rows_of(tmp_path / "t.csv")["red_0.png"].caption
        assert latin_path.with_suffix(".txt").read_text() == f"{words}\n"
        assert read_description(copies / long_name) == words
        caption(photos, model, tmp_path / "t.csv", embed_into="images")
        assert read_description(latin_path) == words

    def test_read_only_pictures_have_copies_and_stay_as_they_are_in_place(
        self, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("exiv2")
        path = photos / "red_0.png"
        before = path.read_bytes()
        path.chmod(0o444)
        real_open = os.open

        def open_as_a_user(name: Path, flags: int, *arguments: int) -> int:  # the tests may run as root, who may write
            if flags & (os.O_WRONLY | os.O_RDWR) and Path(name).exists() and not Path(name).stat().st_mode & 0o222:
                raise PermissionError(13, "Permission denied", str(name))
            return real_open(name, flags, *arguments)

        monkeypatch.setattr(os, "open", open_as_a_user)
        monkeypatch.setattr(os, "access", lambda name, _: bool(Path(name).stat().st_mode & 0o222))
        copies = tmp_path / "copies"
        assert caption(photos, model, tmp_path / "t.csv", embed_into=copies).embedded == EmbedSummary(8, (), ())
        assert (copies / "red_0.png").stat().st_mode & 0o777 == 0o444
        in_place = caption(photos, model, tmp_path / "t.csv", embed_into="images").embedded
        assert in_place == EmbedSummary(7, (), ("red_0.png",))
        assert path.read_bytes() == before

    def test_copies_among_the_images_are_refused(self, model: Path, photos: Path, tmp_path: Path) -> None:
        pytest.importorskip("exiv2")
        with pytest.raises(InputError, match="copies among the images would be captioned too"):
            caption(photos, model, tmp_path / "t.csv", embed_into=photos / "copies")
        with pytest.raises(InputError, match="copies among the images would be captioned too"):
            caption(str(photos), model, tmp_path / "t.csv", embed_into=photos / "copies")


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_no_output_replaces_an_image(model: Path, photos: Path, tmp_path: Path) -> None:
    image = next(photos.rglob("*.JPG"))
    before = image.read_bytes()
    with pytest.raises(InputError, match="is an image and would be overwritten; name another output"):
        caption_folder(photos, model, tmp_path / "captions.csv", table=TableConfig(gallery=image))
    with pytest.raises(InputError, match="is an image and would be overwritten; name another output"):
        caption_folder(photos, model, image, overwrite=True)
    assert image.read_bytes() == before
