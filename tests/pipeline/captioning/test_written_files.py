"""Captions in files for other programs: XMP packets, metadata.jsonl, tars, images; and what a person changes there."""

import json
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any, Literal

import pytest
from builders import make_model
from PIL import Image
from processes import Child

from captionmill.data.errors import InputError
from captionmill.data.images.xmp import new_packet, read_packet, with_description
from captionmill.data.models.bundle import LOW_CONFIDENCE, read_bundle
from captionmill.data.tables.formats import read_captions
from captionmill.pipeline.captioning.folder import FolderSummary, caption_folder
from captionmill.pipeline.captioning.source import CacheConfig
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.settings import ExtractConfig, SearchConfig
from captionmill.stages.table_settings import TableConfig

MACHINE = ExtractConfig(
    backbone="scenes-resnet14", preprocess="squash", image_size=32, engine="torch", precision="fp32", device="cpu"
)


@pytest.fixture
def model(thin_weights: Path, tmp_path: Path) -> Path:
    encoder = build_encoder(ExtractConfig(**vars(MACHINE) | {"weights": str(thin_weights)}))
    return make_model(tmp_path / "model", encoder.spec, scores={LOW_CONFIDENCE: 0.5})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "a.jpg")
    Image.new("RGB", (40, 30), "blue").save(folder / "b" / "c.png")
    return folder


def caption(
    images: Any,
    model: Path,
    table: Path,
    *,
    embed_into: Path | Literal["images"] | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> FolderSummary:
    search = SearchConfig(beam_size=1, max_length=4)
    cache = CacheConfig(machine=MACHINE)
    config = TableConfig(**settings)
    return caption_folder(
        images, model, table, search, table=config, cache=cache, embed_into=embed_into, overwrite=overwrite
    )


def captions_of(table: Path) -> dict[str, str]:
    return {row.path: row.caption for row in read_captions(table)}


def renew(model: Path, seed: int) -> None:
    """Make it another model, with other captions."""
    make_model(model, read_bundle(model).spec, seed=seed)


class TestXmpSidecars:
    def test_are_packets_beside_the_whole_name_of_each_image(self, model: Path, images: Path, tmp_path: Path) -> None:
        table = tmp_path / "t.csv"
        assert caption(images, model, table, sidecar=".xmp", prefix="photo of ").sidecars == 2
        for key, text in captions_of(table).items():
            packet = read_packet((images / f"{key}.xmp").read_bytes())
            assert packet is not None
            assert packet.description == f"photo of {text}"
        assert caption(images, model, table, sidecar=".xmp", prefix="photo of ").sidecars == 0
        renew(model, 1)
        caption(images, model, table, sidecar=".xmp")
        assert (images / "a.jpg.xmp").read_bytes() == new_packet(captions_of(table)["a.jpg"])

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_of_others_get_a_description_and_one_that_is_there_stays(
        self, overwrite: bool, model: Path, images: Path, tmp_path: Path
    ) -> None:
        edited = new_packet("").replace(b"captionmill", b"lightroom").replace(b"<rdf:li", b"<rdf:x")
        edited = edited[: edited.index(b"   <dc:")] + edited[edited.index(b"  </rdf:Description>") :]
        edited = edited.replace(b"photoshop:CaptionWriter", b"photoshop:Credit")
        described = with_description(edited, "x")
        assert described is not None
        described = described.replace(b'CaptionWriter="captionmill"', b'CaptionWriter="me"')
        (images / "a.jpg.xmp").write_bytes(edited)
        (images / "b" / "c.png.xmp").write_bytes(described)
        table = tmp_path / "t.csv"
        summary = caption(images, model, table, sidecar=".xmp", overwrite=overwrite)
        assert (summary.sidecars, summary.files.kept_sidecars) == (1, ("b/c.png",))
        assert (images / "a.jpg.xmp").read_bytes() == with_description(edited, captions_of(table)["a.jpg"])
        assert (images / "b" / "c.png.xmp").read_bytes() == described

    def test_that_a_person_changed_are_that_persons_captions(self, model: Path, images: Path, tmp_path: Path) -> None:
        table, path = tmp_path / "t.csv", images / "a.jpg.xmp"
        caption(images, model, table, sidecar=".xmp", suffix=", film")
        before = captions_of(table)["a.jpg"]
        path.write_bytes(path.read_bytes().replace(before.encode(), b"a red wall"))
        summary = caption(images, model, table, sidecar=".xmp", suffix=", film")
        assert (summary.corrections, summary.reviewed, captions_of(table)["a.jpg"]) == (1, 1, "a red wall")
        renew(model, 1)
        caption(images, model, table, sidecar=".xmp", suffix=", film")
        assert b">a red wall, film<" in path.read_bytes()


class TestMetadataLines:
    def test_name_each_image_relative_to_their_folder(self, model: Path, images: Path, tmp_path: Path) -> None:
        table, path = tmp_path / "t.csv", images / "metadata.jsonl"
        (images / "broken.jpg").write_bytes(b"no image")
        caption(images, model, table, metadata_jsonl=path, caption_template="photo of {caption}")
        texts = captions_of(table)
        assert [json.loads(line) for line in path.read_text().splitlines()] == [
            {"file_name": key, "text": f"photo of {texts[key]}"} for key in ("a.jpg", "b/c.png")
        ]
        written = path.read_bytes()
        caption(images, model, table, metadata_jsonl=path)
        assert b"photo of" not in path.read_bytes()
        caption(images / "b", model, tmp_path / "u.csv", metadata_jsonl=tmp_path / "metadata.jsonl")
        assert json.loads((tmp_path / "metadata.jsonl").read_text())["file_name"] == "images/b/c.png"
        assert written

    def test_that_a_person_changed_are_that_persons_captions(self, model: Path, images: Path, tmp_path: Path) -> None:
        table, path = tmp_path / "t.csv", images / "metadata.jsonl"
        caption(images, model, table, metadata_jsonl=path)
        first, second = path.read_text().splitlines()
        path.write_text(second + "\n" + json.dumps({"file_name": "a.jpg", "text": "a red wall"}) + "\n")
        assert caption(images, model, table, metadata_jsonl=path).corrections == 1
        assert captions_of(table)["a.jpg"] == "a red wall"
        assert path.read_text().splitlines() == ['{"file_name": "a.jpg", "text": "a red wall"}', second]
        assert first not in path.read_text()

    def test_of_others_or_with_more_in_them_stay(self, model: Path, images: Path, tmp_path: Path) -> None:
        table, path = tmp_path / "t.csv", images / "metadata.jsonl"
        path.write_text('{"file_name": "a.jpg", "text": "mine"}\n')
        with pytest.raises(InputError, match=r"metadata\.jsonl: exists already and was not written by a run into"):
            caption(images, model, table, metadata_jsonl=path)
        caption(images, model, table, metadata_jsonl=path, overwrite=True)
        path.write_text(path.read_text().replace("}\n", ', "label": 3}\n'))
        before = path.read_bytes()
        with pytest.raises(InputError, match="or holds more than file names and texts"):
            caption(images, model, table, metadata_jsonl=path)
        assert path.read_bytes() == before

    def test_leave_a_persons_captions_also_where_the_rest_is_replaced(
        self, model: Path, images: Path, tmp_path: Path
    ) -> None:
        table, path = tmp_path / "t.csv", images / "metadata.jsonl"
        caption(images, model, table, metadata_jsonl=path)
        mine = '{"file_name": "a.jpg", "text": "a red wall", "label": 3}'
        path.write_text(f'{mine}\n{{"file_name": "new.jpg", "text": "mine"}}\nno JSON\n')
        assert caption(images, model, table, metadata_jsonl=path, overwrite=True).corrections == 1
        assert captions_of(table)["a.jpg"] == "a red wall"

    def test_are_refused_where_imagefolder_would_not_find_them(self, model: Path, images: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"must be called metadata\.jsonl"):
            caption(images, model, tmp_path / "t.csv", metadata_jsonl=images / "captions.jsonl")
        with pytest.raises(InputError, match=r"a\.jpg is not in .*b or below it"):
            caption(images, model, tmp_path / "t.csv", metadata_jsonl=images / "b" / "metadata.jsonl")


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: file.read() for info in tar if (file := tar.extractfile(info)) is not None}


@pytest.fixture
def shards(images: Path, tmp_path: Path) -> Path:
    """Two tars of two images each, and a file that is no image."""
    for number in range(2):
        path = tmp_path / "shards" / f"{number}.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, source in (("0001.jpg", "a.jpg"), ("0002.png", "b/c.png")):
                tar.add(images / source, f"{number}{name}")
                tar.add(images / source, f"{number}{name[:4]}.cls")
    return tmp_path / "shards"


class TestShards:
    def test_hold_a_caption_behind_each_image(self, model: Path, shards: Path, tmp_path: Path) -> None:
        table, copies = tmp_path / "t.csv", tmp_path / "captioned"
        before = {path.name: path.read_bytes() for path in shards.iterdir()}
        files = caption(shards, model, table, tars=copies, prefix="photo of ").files
        assert files.shards is not None
        assert (files.shards.written, files.shards.as_before) == (2, 0)
        assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
        texts = captions_of(table)
        for number in range(2):
            members = read_tar(copies / f"{number}.tar")
            order = ["0001.jpg", "0001.txt", "0001.cls", "0002.png", "0002.txt", "0002.cls"]
            assert list(members) == [f"{number}{name}" for name in order]
            assert members[f"{number}0001.txt"].decode() == f"photo of {texts[f'{number}.tar/{number}0001.jpg']}"
            original = read_tar(shards / f"{number}.tar")
            assert {name: members[name] for name in original} == original
        again = caption(shards, model, table, tars=copies, prefix="photo of ").files.shards
        assert again is not None
        assert (again.written, again.as_before) == (0, 2)

    def test_are_written_again_where_a_caption_changed(self, model: Path, shards: Path, tmp_path: Path) -> None:
        table, copies = tmp_path / "t.csv", tmp_path / "captioned"
        caption(shards, model, table, tars=copies, tar_suffix=".json")
        first = captions_of(table)["0.tar/00001.jpg"]
        values = json.loads(read_tar(copies / "0.tar")["00001.json"])
        assert list(values) == ["caption", "confidence", "flags", "status"]
        assert (values["caption"], values["status"]) == (first, "ok")
        table.write_bytes(table.read_bytes().replace(f"0.tar/00001.jpg,{first}".encode(), b"0.tar/00001.jpg,a wall"))
        done = caption(shards, model, table, tars=copies, tar_suffix=".json").files.shards
        assert done is not None
        assert (done.written, done.as_before) == (1, 1)
        values = json.loads(read_tar(copies / "0.tar")["00001.json"])
        assert values == {"caption": "a wall", "confidence": None, "flags": [], "status": "corrected"}

    def test_of_one_tar_has_its_name(self, model: Path, shards: Path, tmp_path: Path) -> None:
        caption(shards / "0.tar", model, tmp_path / "t.csv", tars=tmp_path / "captioned")
        assert (
            read_tar(tmp_path / "captioned" / "0.tar")["00002.txt"].decode()
            == (captions_of(tmp_path / "t.csv")["00002.png"])
        )

    def test_a_kill_leaves_whole_ones_and_the_next_run_writes_the_others(
        self, model: Path, shards: Path, tmp_path: Path
    ) -> None:
        table, copies = tmp_path / "t.csv", tmp_path / "captioned"
        caption(shards, model, table)
        program = (
            "import os, pathlib, signal, sys\n"
            "from captionmill.data.images.find import find_images\n"
            "from captionmill.data.tables.formats import read_captions\n"
            "from captionmill.data.tables.wording import Wording\n"
            "from captionmill.pipeline.captioning.shards import Shards\n"
            "def progress(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
            "images, table, copies = map(pathlib.Path, sys.argv[1:])\n"
            "shards = Shards(images, find_images(images), copies, '.txt', table, wording=Wording(), overwrite=False)\n"
            "shards.write(read_captions(table), progress=progress)\n"
        )
        with Child(program, shards, table, copies) as process:
            assert process.wait() == -signal.SIGKILL
        assert [path.name for path in copies.iterdir()] == ["0.tar"]
        stamp = (copies / "0.tar").stat().st_mtime_ns
        done = caption(shards, model, table, tars=copies).files.shards
        assert done is not None
        assert (done.written, done.as_before) == (1, 1)
        assert (copies / "0.tar").stat().st_mtime_ns == stamp

    def test_are_refused_where_something_would_be_lost(self, model: Path, shards: Path, tmp_path: Path) -> None:
        table = tmp_path / "t.csv"
        with pytest.raises(InputError, match=r"has a member 00001\.cls already; choose another `tar_suffix`"):
            caption(shards, model, table, tars=tmp_path / "out", tar_suffix=".cls")
        with pytest.raises(InputError, match="copies among the images would be captioned too"):
            caption(shards, model, table, tars=shards / "out")
        with pytest.raises(InputError, match="is a tar of this command and would be overwritten"):
            caption(shards / "0.tar", model, table, tars=shards)
        with pytest.raises(InputError, match=r"no image is in a \.tar"):
            caption(tmp_path / "images", model, table, tars=tmp_path / "out")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "1.tar").write_bytes(b"mine")
        with pytest.raises(InputError, match=r"1\.tar: exists already and is not as a run into .*t\.csv wrote it"):
            caption(shards, model, table, tars=tmp_path / "out")
        assert (tmp_path / "out" / "1.tar").read_bytes() == b"mine"
        assert not table.exists()


def test_words_around_captions_without_a_file_for_them_are_refused(model: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="apply to files that are written with the table: set `sidecar`"):
        caption(images, model, tmp_path / "t.csv", prefix="photo of ")


class TestDescriptions:
    """What a person changes in an image that we described."""

    @staticmethod
    def describe(path: Path, text: str, *, name: str = "Xmp.dc.description") -> None:
        exiv2 = pytest.importorskip("exiv2")
        image = exiv2.ImageFactory.open(str(path))
        image.readMetadata()
        if name.startswith("Xmp"):
            image.xmpData()[name] = exiv2.LangAltValue({"x-default": text})
        else:
            image.iptcData()[name] = text
        image.writeMetadata()

    @pytest.mark.parametrize(("name", "in_place"), [("Xmp.dc.description", False), ("Iptc.Application2.Caption", True)])
    def test_is_a_correction_that_lasts(
        self, name: str, in_place: bool, model: Path, images: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("exiv2")
        table = tmp_path / "t.csv"
        into: Path | Literal["images"] = "images" if in_place else tmp_path / "copies"
        caption(images, model, table, embed_into=into)
        path = images / "a.jpg" if in_place else tmp_path / "copies" / "a.jpg"
        self.describe(path, "a red wall", name=name)
        summary = caption(images, model, table, embed_into=into)
        assert (summary.corrections, captions_of(table)["a.jpg"]) == (1, "a red wall")
        renew(model, 1)
        for overwrite in (False, True):
            done = caption(images, model, table, embed_into=into, overwrite=overwrite)
            assert done.embedded is not None
            assert (done.corrections, done.reviewed, done.embedded.embedded) == (0, 1, 2)
            assert captions_of(table)["a.jpg"] == "a red wall"

    def test_of_a_run_into_another_table_stays_unless_overwritten(
        self, model: Path, images: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("exiv2")
        caption(images, model, tmp_path / "t.csv", embed_into="images")
        shutil.rmtree(tmp_path / ".t.csv.made")
        renew(model, 1)
        done = caption(images, model, tmp_path / "u.csv", embed_into="images").embedded
        assert done is not None
        assert done.described == ("a.jpg", "b/c.png")
        done = caption(images, model, tmp_path / "u.csv", embed_into="images", overwrite=True).embedded
        assert done is not None
        assert (done.embedded, done.described) == (2, ())


@pytest.mark.parametrize(("first", "second"), [("1.csv", "2.csv"), ("1/t.csv", "2/t.csv")])
def test_what_a_run_into_another_table_wrote_is_no_correction(
    first: str, second: str, model: Path, images: Path, tmp_path: Path
) -> None:
    lines = images / "metadata.jsonl"
    files: dict[str, Any] = {"sidecar": ".txt", "embed_into": tmp_path / "copies"}
    caption(images, model, tmp_path / first, metadata_jsonl=lines, **files)
    kept = captions_of(tmp_path / first)
    renew(model, 1)
    caption(images, model, tmp_path / second, metadata_jsonl=lines, overwrite=True, **files)
    (images / "a.txt").write_text("a person's\n")
    renew(model, 0)
    with pytest.raises(InputError, match=r"c\.txt: exists already and was not written by a run into"):
        caption(images, model, tmp_path / first, **files)
    with pytest.raises(InputError, match=r"metadata\.jsonl: exists already and was not written by a run into"):
        caption(images, model, tmp_path / first, metadata_jsonl=lines)
    summary = caption(images, model, tmp_path / first, embed_into=tmp_path / "copies")
    assert (summary.corrections, summary.embedded.described if summary.embedded else None) == (0, ("a.jpg", "b/c.png"))
    summary = caption(images, model, tmp_path / first, metadata_jsonl=lines, overwrite=True, **files)
    assert (summary.corrections, summary.sidecars) == (1, 1)
    assert captions_of(tmp_path / first) == kept | {"a.jpg": "a person's"}
    assert "a person's" in lines.read_text()


def test_a_packet_that_a_run_into_another_table_wrote_is_no_correction(
    model: Path, images: Path, tmp_path: Path
) -> None:
    caption(images, model, tmp_path / "1.csv", sidecar=".xmp")
    (images / "b" / "c.png.xmp").unlink()
    renew(model, 1)
    caption([images / "b" / "c.png"], model, tmp_path / "2.csv", sidecar=".xmp")  # the same image under another key
    renew(model, 0)
    summary = caption(images, model, tmp_path / "1.csv", sidecar=".xmp")
    assert (summary.corrections, summary.files.kept_sidecars) == (0, ("b/c.png",))


@pytest.mark.parametrize(
    ("content", "caption_after"),
    [
        ("a red wall\r\n".encode("utf-16"), "a red wall"),
        ("\ufeffa red  wall".encode(), "a red wall"),
        (b"", None),
        (b" \n", None),
    ],
)
def test_a_sidecar_counts_as_an_editor_saved_it_and_an_emptied_one_is_written_again(
    content: bytes, caption_after: str | None, model: Path, images: Path, tmp_path: Path
) -> None:
    table, path = tmp_path / "t.csv", images / "a.txt"
    caption(images, model, table, sidecar=".txt")
    expected = caption_after or captions_of(table)["a.jpg"]
    path.write_bytes(content)
    assert caption(images, model, table, sidecar=".txt").corrections == (caption_after is not None)
    assert captions_of(table)["a.jpg"] == expected
    assert path.read_text() == f"{expected}\n"


def test_a_changed_sidecar_that_is_not_utf_8_stops_the_run(model: Path, images: Path, tmp_path: Path) -> None:
    table, path = tmp_path / "t.csv", images / "a.txt"
    caption(images, model, table, sidecar=".txt")
    path.write_bytes("a Käfer".encode("latin-1"))
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"a\.txt: was changed, and is not UTF-8 text; save it as UTF-8"):
            caption(images, model, table, sidecar=".txt", overwrite=overwrite)
    assert path.read_bytes() == "a Käfer".encode("latin-1")
