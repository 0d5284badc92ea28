"""JPEGs that a device decodes: which ones it gets, in which order they come back, and what the CPU takes over.

The device is the CPU here, whose decoder torchvision offers in the same place. No test runs on a GPU.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captionmill.data.errors import ImageError, InputError
from captionmill.data.features.parts import NewParts
from captionmill.data.features.store import FeatureStore
from captionmill.data.images.decode import Pixels, check_pixels, decode_pixels
from captionmill.data.images.find import find_images
from captionmill.data.images.formats.jpeg import CheckedJpeg
from captionmill.data.images.read import ImageFile
from captionmill.stages.encoding.encoder import Encoder, build_encoder
from captionmill.stages.encoding.engine import build_engine, build_jpeg_decoder
from captionmill.stages.encoding.engines.jpegs import JpegDecoder
from captionmill.stages.encoding.extract import extract
from captionmill.stages.encoding.loader import Batch, PrepareJpegs, load_batches
from captionmill.stages.encoding.share import ShareTask, run_share
from captionmill.stages.settings import ExtractConfig

CPU = torch.device("cpu")


def draw(seed: int, size: tuple[int, int] = (150, 120)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return as_jpeg(draw(6), exif=exif)


def with_wrong_code() -> bytes:
    data = bytearray(as_jpeg(draw(7)))
    start = data.index(b"\xff\xda") + 200
    data[start : start + 40] = bytes(range(1, 41))
    return bytes(data)


def with_hole() -> bytes:
    data = as_jpeg(draw(13), quality=97)
    return data[:900] + bytes(400) + data[1300:]


TAKEN = {
    "a-full-colour.jpg": as_jpeg(draw(0), subsampling=0),
    "b-usual.jpg": as_jpeg(draw(1)),
    "c-grey.jpg": as_jpeg(draw(2).convert("L")),
    "d-tall.jpg": as_jpeg(draw(3, (70, 160)), quality=50, icc_profile=b"a profile that nobody applies"),
    "e-restarts.jpg": as_jpeg(draw(4), restart_marker_rows=1),
}
LEFT = {
    "f-progressive.jpg": as_jpeg(draw(5), progressive=True),
    "g-turned.jpg": turned(),
    "h-cmyk.jpg": as_jpeg(draw(8).convert("CMYK")),
    "i-large.jpg": as_jpeg(draw(9, (800, 800))),
    "j-small.jpg": as_jpeg(draw(10, (40, 40))),
    "k-no-end.jpg": as_jpeg(draw(11))[:-2],
}
DAMAGED = {
    "l-cut-off.jpg": as_jpeg(draw(12))[:-400],
    "m-wrong-code.jpg": with_wrong_code(),
    "n-hole.jpg": with_hole(),
    "o-empty.jpg": b"",
}


def make_config(weights: Path, **changes: Any) -> ExtractConfig:
    usual: dict[str, Any] = {"image_size": 64, "batch_size": 4, "precision": "fp32", "device": "cpu", "workers": 2}
    return ExtractConfig("scenes-resnet14", weights=str(weights), **usual | changes)


@pytest.fixture(scope="module")
def encoder(thin_weights: Path) -> Encoder:
    return build_encoder(make_config(thin_weights))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jpegs")
    for name, data in (TAKEN | LEFT | DAMAGED).items():
        (path / name).write_bytes(data)
    draw(14).save(path / "p.png")
    return path


def load(folder: Path, encoder: Encoder, prepare_jpegs: PrepareJpegs | None) -> list[Batch]:
    return list(
        load_batches(
            find_images(folder),
            encoder.prepare,
            least_size=encoder.least_size,
            batch_size=4,
            workers=2,
            prepare_jpegs=prepare_jpegs,
        )
    )


def pixels_in(batches: list[Batch]) -> dict[str, Pixels]:
    return {key: image for batch in batches for key, image in zip(batch.keys, batch.images, strict=True)}


def reasons_in(batches: list[Batch]) -> dict[str, str]:
    return {failure.key: failure.reason for batch in batches for failure in batch.failures}


def make_task(images: list[ImageFile], store: Path, encoder: Encoder, config: ExtractConfig) -> ShareTask:
    return ShareTask(tuple(images), store, NewParts.of(store).prefix(0), encoder.spec, config)


def check(data: bytes, encoder: Encoder) -> CheckedJpeg | None:
    return check_pixels(data, at_least=encoder.least_size)


@pytest.mark.parametrize("name", TAKEN)
def test_an_undamaged_usual_jpeg_may_be_decoded_elsewhere(encoder: Encoder, name: str) -> None:
    jpeg = check(TAKEN[name], encoder)
    assert jpeg is not None
    assert jpeg.data == TAKEN[name]
    with Image.open(io.BytesIO(jpeg.data)) as image:
        assert jpeg.size == image.size
        small = np.asarray(image.convert("RGB").reduce(8), dtype=np.float32)
    assert jpeg.eighth.shape == small.shape
    assert np.abs(jpeg.eighth - small)[:-1, :-1].max() < 12


@pytest.mark.parametrize("name", LEFT | DAMAGED)
def test_every_other_file_is_left_to_the_cpu(encoder: Encoder, name: str) -> None:
    assert check((LEFT | DAMAGED)[name], encoder) is None


def test_no_damage_that_the_cpu_names_gets_to_a_device(encoder: Encoder) -> None:
    whole = TAKEN["b-usual.jpg"]
    draws = np.random.default_rng(0)
    taken, refused = 0, 0
    for number in range(90):
        at, length = (int(draws.integers(2, limit)) for limit in (len(whole), 40))
        put, taken_out = ((b"", length), (bytes([length]), 1), (bytes(length), length))[number % 3]
        data = whole[:at] + put + whole[at + taken_out :]
        try:
            decode_pixels(data, at_least=encoder.least_size)
        except ImageError:
            refused += 1
            assert check(data, encoder) is None, number
        else:
            taken += check(data, encoder) is not None
    assert min(refused, taken) > 20


@pytest.mark.parametrize(("preprocess", "views"), [("squash", "one"), ("crop", "six"), ("whole", "one")])
def test_the_device_prepares_images_as_the_cpu_does(
    folder: Path, thin_weights: Path, preprocess: Any, views: Any
) -> None:
    encoder = build_encoder(make_config(thin_weights, preprocess=preprocess, views=views))
    usual, found = load(folder, encoder, None), load(folder, encoder, JpegDecoder(encoder, CPU))
    assert [batch.keys for batch in found] == [batch.keys for batch in usual]
    assert reasons_in(found) == reasons_in(usual)
    assert set(reasons_in(found)) == set(DAMAGED)
    expected, pixels = pixels_in(usual), pixels_in(found)
    for key in TAKEN:  # torch resizes in floating point, Pillow rounds after each direction
        assert 0 < np.abs(pixels[key].astype(int) - expected[key]).max() <= 1, key
    for key in (*LEFT, "p.png"):
        assert np.array_equal(pixels[key], expected[key]), key


def test_features_of_the_device_point_the_same_way_and_the_store_names_it(
    folder: Path, encoder: Encoder, thin_weights: Path, tmp_path: Path
) -> None:
    config = make_config(thin_weights, engine="torch")
    engine, images = build_engine(encoder, config), find_images(folder)
    rows = {}
    for name, jpegs in (("cpu", None), ("device", JpegDecoder(encoder, CPU))):
        task = make_task(images, tmp_path / f"{name}.h5", encoder, config)
        result = run_share(task, encoder, engine, jpegs=jpegs)
        store = FeatureStore.open(task.store)
        assert result.engine == store.made_by["engine"]
        rows[name] = np.stack([store[key] for key in TAKEN]).astype(np.float64)
    assert store.made_by["engine"] == "cpu torch float32, JPEGs decoded on the GPU"
    cosine = (rows["cpu"] * rows["device"]).sum(1) / np.prod(
        [np.linalg.norm(found, axis=1) for found in rows.values()], 0
    )
    assert 0.999 < cosine.min() < cosine.max() < 1


def test_a_store_may_hold_rows_of_both_and_names_them(
    folder: Path, encoder: Encoder, thin_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, store = make_config(thin_weights, engine="torch"), folder.parent / "both.h5"
    images = find_images(folder)
    task = make_task(images[:2], store, encoder, config)
    run_share(task, encoder, build_engine(encoder, config), jpegs=JpegDecoder(encoder, CPU))
    summary = extract(folder, store, config)
    assert summary.cached == 2
    engines = FeatureStore.open(store).made_by["engine"]
    assert engines == "cpu torch float32, JPEGs decoded on the GPU; cpu torch float32"
    note = f"holds rows of JPEGs decoded on the GPU and others ({engines}); `overwrite` makes all of them again"
    assert caplog.messages == [f"{store}: {note}"]


def test_a_wrong_image_is_refused_and_the_cpu_decodes_it(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    jpegs = [found for data in TAKEN.values() if (found := check(data, encoder))]
    decoder = JpegDecoder(encoder, CPU)
    assert all(pixels is not None for pixels in decoder(jpegs))
    assert caplog.messages == []
    black = as_jpeg(Image.new("RGB", jpegs[0].size))
    one_block = draw(1)
    one_block.paste((255, 255, 255), (40, 40, 56, 56))
    wrong = [
        jpegs[0]._replace(data=black),  # as if the device had written nothing
        jpegs[1]._replace(data=as_jpeg(one_block)),
        jpegs[2]._replace(data=jpegs[2].data[:-300]),
        jpegs[3],
        jpegs[4]._replace(data=jpegs[3].data),
    ]
    assert [found is None for found in decoder(wrong)] == [True, True, True, False, True]
    assert caplog.messages == ["the GPU refused 4 of 5 JPEGs, which the CPU decodes"]


def test_what_the_device_refuses_is_bit_for_bit_what_the_cpu_makes(folder: Path, encoder: Encoder) -> None:
    usual = load(folder, encoder, None)
    seen: list[bytes] = []

    def refuse_every_second(jpegs: Any) -> list[Pixels | None]:
        seen.extend(jpeg.data for jpeg in jpegs)
        return [pixels if number % 2 else None for number, pixels in enumerate(decoder(jpegs))]

    decoder = JpegDecoder(encoder, CPU)
    found = load(folder, encoder, refuse_every_second)
    assert seen == list(TAKEN.values())
    assert [batch.keys for batch in found] == [batch.keys for batch in usual]
    same = [key for key in TAKEN if np.array_equal(pixels_in(found)[key], pixels_in(usual)[key])]
    assert same == list(TAKEN)[::2]


def test_an_input_too_large_for_the_device_is_left_to_the_cpu(thin_weights: Path) -> None:
    encoder = build_encoder(make_config(thin_weights, preprocess="crop", image_size=2048))
    jpeg = check(TAKEN["b-usual.jpg"], encoder)
    assert jpeg is not None
    assert JpegDecoder(encoder, CPU)([jpeg]) == [None]


def test_without_a_gpu_the_setting_is_refused_in_one_line(photos: Path, thin_weights: Path, tmp_path: Path) -> None:
    config = make_config(thin_weights, decode="gpu", engine="torch")
    message = "^`decode` gpu needs an NVIDIA GPU, as `device` cuda: use `decode` cpu$"
    with pytest.raises(InputError, match=message):
        extract(photos, tmp_path / "f.h5", config)
    assert not (tmp_path / "f.h5").exists()
    encoder = build_encoder(config)
    with pytest.raises(InputError, match=message):  # where a GPU is there, but is not chosen
        build_jpeg_decoder(encoder, config)
    assert build_jpeg_decoder(encoder, replace(config, decode="cpu")) is None
    with pytest.raises(InputError, match=r"^`decode` gpu: torchvision cannot decode on meta \(.+\): use `decode` cpu$"):
        JpegDecoder(encoder, torch.device("meta"))
