"""Images from files and from memory are captioned in their order, as `caption_folder` captions the same files."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_model
from PIL import Image

from captionmill.data.errors import InputError, SettingError
from captionmill.data.features.spec import Preprocess
from captionmill.data.features.store import FeatureStore
from captionmill.data.images.decode import decode_pixels
from captionmill.data.images.find import find_images
from captionmill.data.images.formats.kinds import FORMATS
from captionmill.data.models.bundle import LOW_CONFIDENCE, read_bundle, write_model
from captionmill.data.tables.formats import read_captions
from captionmill.pipeline.captioning.folder import caption_folder
from captionmill.pipeline.captioning.images import CaptionedImage, caption_images
from captionmill.pipeline.captioning.source import CacheConfig
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.encoding.extract import extract
from captionmill.stages.settings import ExtractConfig, SearchConfig

MACHINE = ExtractConfig(
    backbone="scenes-resnet14", preprocess="squash", image_size=32, engine="torch", precision="fp32", device="cpu"
)
SEARCH = SearchConfig(beam_size=3, max_length=6, alternatives=1)


def make_sharp_model(
    path: Path, weights: Path, images: Path, *, preprocess: Preprocess = "squash", seed: int = 0
) -> Path:
    """A model that sees what is special about each of `images`, and has other captions for others."""
    store_path = path.with_suffix(".h5")
    extract(images, store_path, replace(MACHINE, weights=str(weights), preprocess=preprocess))
    store = FeatureStore.open(store_path)
    rows = store.read(range(len(store))).astype(np.float32)
    model = read_bundle(make_model(path, store.spec, scores={LOW_CONFIDENCE: 0.5}, seed=seed))
    tensors = {name: 3 * tensor for name, tensor in model.tensors.items()}
    tensors |= {"feature_mean": rows.mean(axis=0), "feature_std": rows.std(axis=0) + 1e-3}
    write_model(path, replace(model, tensors=tensors))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in every form that an image file has: formats, modes, the eight EXIF orientations, and none at all."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def noise(mode: str) -> Image.Image:
        coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        return coarse.resize((48, 36), Image.Resampling.NEAREST).convert(mode)

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise("RGB").save(folder / f"turned_{orientation}.jpg", exif=exif, quality=95)
        noise("RGB").save(folder / f"turned_{orientation}.tif", exif=exif)
    for name, mode in {
        "grey.jpg": "L",
        "cmyk.jpg": "CMYK",
        "plain.bmp": "RGB",
        "few.gif": "P",
        "grey.png": "L",
    }.items():
        noise(mode).save(folder / name)
    transparent = noise("RGBA")
    transparent.putalpha(Image.fromarray(rng.integers(0, 256, (36, 48), dtype=np.uint8)))
    transparent.save(folder / "clear.png")
    transparent.save(folder / "clear.webp", lossless=True)
    Image.fromarray(rng.integers(0, 2**16, (36, 48), dtype=np.uint16)).save(folder / "deep.png")
    noise("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(folder / "two_bits.png", transparency=1)
    (folder / "broken.jpg").write_bytes((folder / "turned_1.jpg").read_bytes()[:300])
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def model(thin_weights: Path, folder: Path) -> Path:
    return make_sharp_model(folder.parent / "model", thin_weights, folder)


@pytest.fixture(scope="module")
def expected(folder: Path, model: Path) -> dict[str, CaptionedImage]:
    """What `caption_folder` writes of each file, by name."""
    table = folder.parent / "captions.jsonl"
    caption_folder(folder, model, table, SEARCH, cache=CacheConfig(machine=MACHINE))
    return {
        row.path: CaptionedImage(row.path, row.caption, row.confidence, row.flags, row.alternatives, row.error)
        for row in read_captions(table)
    }


def caption(images: Any, model: Any, **options: Any) -> list[CaptionedImage]:
    return list(caption_images(images, model, **{"search": SEARCH, "machine": MACHINE} | options))


def require_same(found: list[CaptionedImage], expected: list[CaptionedImage]) -> None:
    """The same words, flags and reasons; the confidence as far as blocks of other sizes let it be the same."""
    assert [replace(image, name="", confidence=None) for image in found] == [
        replace(image, name="", confidence=None) for image in expected
    ]
    for mine, other in zip(found, expected, strict=True):
        assert mine.confidence == pytest.approx(other.confidence, abs=6e-5)  # as tables round it


def test_a_file_has_the_caption_that_caption_folder_gives_it(
    folder: Path, model: Path, expected: dict[str, CaptionedImage]
) -> None:
    names = [image.key for image in find_images(folder)]
    names.reverse()
    found = caption([folder / name for name in names], model, group_size=7)
    assert [image.name for image in found] == [str(folder / name) for name in names]
    require_same(found, [expected[name] for name in names])
    assert len({image.text for image in found}) > 4
    assert [Path(image.name).name for image in found if image.error] == ["text.png", "broken.jpg"]


@pytest.mark.parametrize("form", ["str", "bytes", "bytearray", "file", "opened", "loaded", "array", "tensor"])
def test_an_image_has_one_caption_in_whatever_form_it_comes(
    form: str, folder: Path, model: Path, expected: dict[str, CaptionedImage]
) -> None:
    names = [name for name, image in expected.items() if not image.error]

    def images() -> Iterator[Any]:
        for name in names:
            path = folder / name
            if form == "str":
                yield str(path)
            elif form == "bytes":
                yield path.read_bytes()
            elif form == "bytearray":
                yield bytearray(path.read_bytes())
            elif form == "file":
                with path.open("rb") as file:
                    yield file
            elif form == "tensor":
                yield torch.from_numpy(decode_pixels(path.read_bytes()))
            elif form == "array":
                yield decode_pixels(path.read_bytes())
            else:
                with Image.open(path) as image:
                    if form == "loaded" and name != "two_bits.png":  # Pillow forgets how deep that was
                        image.load()
                    yield image

    found = caption(images(), model)
    require_same(found, [expected[name] for name in names])
    if form != "str":
        assert [image.name for image in found] == [str(number) for number in range(len(names))]


def test_a_grey_array_is_an_image(folder: Path, model: Path, expected: dict[str, CaptionedImage]) -> None:
    array = np.asarray(Image.open(folder / "grey.png"))
    assert array.ndim == 2
    require_same(caption([array], model), [expected["grey.png"]])
    require_same(caption(array, model), [expected["grey.png"]])
    require_same(
        caption(np.stack([decode_pixels((folder / "plain.bmp").read_bytes())] * 2), model), [expected["plain.bmp"]] * 2
    )


def test_one_image_is_no_series_of_letters_bytes_or_rows(
    folder: Path, model: Path, expected: dict[str, CaptionedImage]
) -> None:
    path = folder / "plain.bmp"
    content, pixels = path.read_bytes(), decode_pixels(path.read_bytes())
    images = (path, str(path), content, bytearray(content), memoryview(content), io.BytesIO(content), Image.open(path))
    for image in (*images, pixels, torch.from_numpy(pixels)):
        require_same(caption(image, model), [expected["plain.bmp"]])


def test_what_is_neither_an_image_nor_a_series_is_one_line(folder: Path, model: Path) -> None:
    with pytest.raises(InputError, match=r"^int: neither an image nor a series of images$"):
        caption(5, model)
    closed = (folder / "plain.bmp").open("rb")
    closed.close()
    with (folder / "plain.bmp").open(encoding="latin-1") as text:
        reasons = [image.error for image in caption([text, closed, torch.zeros(3, 4, 5)], model)]
    assert reasons == [
        "a file that is open as text; open it with mode 'rb'",
        "a file that cannot be read (read of closed file)",
        "an array of float32 [3, 4, 5]; it must be uint8 [H, W, 3] or [H, W]",
    ]


def test_a_file_is_found_by_its_key_in_a_table(
    folder: Path, model: Path, expected: dict[str, CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a\\b.bmp").write_bytes((folder / "plain.bmp").read_bytes())
    monkeypatch.chdir(tmp_path)
    require_same(caption("a/b.bmp", model), [expected["plain.bmp"]])


def test_what_cannot_be_read_has_its_reason_and_harms_no_other(
    folder: Path, model: Path, expected: dict[str, CaptionedImage]
) -> None:
    good = folder / "plain.bmp"
    closed = Image.open(good)
    closed.close()
    bad = {
        folder / "gone.jpg": "no such file or directory",
        folder: "a folder, not a file",
        "a\0b.jpg": "embedded null byte",
        b"": "the file is empty",
        b"no picture": f"not an image, or in a format other than {FORMATS}",
        None: "NoneType: not a path, bytes, a Pillow image or an array",
    }
    pairs: list[tuple[Any, str]] = [
        *bad.items(),
        (np.zeros((2, 2, 3)), "an array of float64 [2, 2, 3]; it must be uint8 [H, W, 3] or [H, W]"),
        (np.zeros((2, 2, 4), np.uint8), "an array of uint8 [2, 2, 4]; it must be uint8 [H, W, 3] or [H, W]"),
        (np.zeros((0, 2, 3), np.uint8), "an image without pixels"),
        (Image.new("RGB", (0, 2)), "an image without pixels"),
        (closed, "truncated or damaged image (Operation on closed image)"),
    ]
    found = caption([image for pair in pairs for image in (pair[0], good)], model, group_size=5)
    assert [image.error for image in found[::2]] == [reason for _, reason in pairs]
    assert {(image.text, image.confidence) for image in found[::2]} == {("", None)}
    require_same(found[1::2], [expected["plain.bmp"]] * len(pairs))


def test_a_generator_is_taken_a_group_at_a_time_and_may_use_one_buffer(
    folder: Path, model: Path, expected: dict[str, CaptionedImage]
) -> None:
    colors = [decode_pixels((folder / f"turned_{number}.jpg").read_bytes()) for number in (1, 2, 3)]
    buffer = np.empty_like(colors[0])
    taken: list[int] = []

    def frames() -> Iterator[Any]:
        for number in itertools.count():
            taken.append(number)
            buffer[:] = colors[number % 3]
            yield buffer

    captions = caption_images(frames(), model, search=SEARCH, machine=MACHINE, group_size=4)
    assert taken == []
    found = [next(captions) for _ in range(4)]
    assert taken == [0, 1, 2, 3]
    found += [next(captions) for _ in range(2)]
    assert taken == list(range(8))
    require_same(found, [expected[f"turned_{number}.jpg"] for number in (1, 2, 3)] * 2)
    assert [image.name for image in found] == ["0", "1", "2", "3", "4", "5"]


def test_a_frame_of_the_networks_own_size_may_change_too(model: Path) -> None:
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
    buffer = np.empty_like(frames[0])

    def reused() -> Iterator[Any]:
        for frame in frames:
            buffer[:] = frame
            yield buffer

    require_same(caption(reused(), model), caption(frames, model))


def test_the_order_holds_where_images_of_one_shape_are_encoded_together(
    thin_weights: Path, folder: Path, tmp_path: Path
) -> None:
    whole = make_sharp_model(tmp_path / "whole", thin_weights, folder, preprocess="whole")
    paths = [folder / f"turned_{number}.jpg" for number in (1, 6, 2, 8, 3, 5, 4, 7)]
    table = tmp_path / "t.jsonl"
    caption_folder(folder, whole, table, SEARCH, cache=CacheConfig(machine=MACHINE))
    texts = {row.path: row.caption for row in read_captions(table)}
    mixed: list[Any] = [path if number % 3 else decode_pixels(path.read_bytes()) for number, path in enumerate(paths)]
    assert [image.text for image in caption(mixed, whole)] == [texts[path.name] for path in paths]


def test_a_model_is_a_path_several_paths_or_a_loaded_captioner(
    thin_weights: Path, folder: Path, tmp_path: Path
) -> None:
    folders = [make_sharp_model(tmp_path / name, thin_weights, folder, seed=seed) for seed, name in enumerate("ab")]
    paths = [folder / f"turned_{number}.jpg" for number in range(1, 9)]
    first = caption(paths, folders[0])
    require_same(caption(paths, str(folders[0])), first)
    require_same(caption(paths, Captioner.load(folders[0])), first)
    both = caption(paths, folders)
    assert [image.text for image in both] != [image.text for image in first]
    for several in ([str(path) for path in folders], tuple(folders), Captioner.load(folders)):
        require_same(caption(paths, several), both)


def test_sampled_captions_depend_on_the_seed_and_the_number_not_on_the_group(folder: Path, model: Path) -> None:
    paths = [folder / "plain.bmp"] * 6
    sample = SearchConfig(max_length=6, sample=True, temperature=3.0, seed=7)
    found = [image.text for image in caption(paths, model, search=sample)]
    assert len(set(found)) > 1
    assert [image.text for image in caption(paths, model, search=sample, group_size=2)] == found
    assert [image.text for image in caption(paths, model, search=replace(sample, seed=8))] != found


def test_what_is_to_be_flagged_can_be_said(folder: Path, model: Path) -> None:
    path = folder / "plain.bmp"
    assert "low-confidence" in caption(path, model, low_confidence=1.0)[0].flags
    assert "low-confidence" not in caption(path, model, low_confidence=0.0)[0].flags


def test_wrong_arguments_are_refused_before_an_image_is_taken(folder: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`group_size` must be at least 1, not 0"):
        caption_images([], model, group_size=0)
    with pytest.raises(SettingError, match="`low_confidence`"):
        caption_images([], model, low_confidence=2.0)
    with pytest.raises(InputError, match="no model is given"):
        caption_images([], [])
    assert caption([], model) == []
