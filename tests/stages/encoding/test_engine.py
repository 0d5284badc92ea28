"""Every engine gives the same rows, whatever shares a batch, and goes on when memory runs out."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import needs_fast_int8, thin_config
from PIL import Image

from captionmill.data.errors import InputError
from captionmill.data.features.file import Features
from captionmill.data.features.spec import Preprocess
from captionmill.data.features.store import FeatureStore
from captionmill.data.images.decode import Pixels
from captionmill.stages.encoding.encoder import Encoder, build_encoder
from captionmill.stages.encoding.engine import Engine, build_engine, encode_batches
from captionmill.stages.encoding.engines.openvino import OpenVinoEngine
from captionmill.stages.encoding.extract import extract
from captionmill.stages.encoding.loader import Batch
from captionmill.stages.encoding.weights import SCENES_WEIGHTS_PATH
from captionmill.stages.settings import EngineName, ExtractConfig, Precision


@pytest.fixture
def config(thin_weights: Path) -> ExtractConfig:
    return thin_config(thin_weights, image_size=64, batch_size=4, engine="auto")


def make_pixels(count: int, side: int = 64) -> Pixels:
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(picture).resize((side, side))) for picture in coarse])


def make_batch(pixels: Pixels) -> Batch:
    return Batch(keys=[f"{number}" for number in range(len(pixels))], images=list(pixels))


def run_engine(config: ExtractConfig, pixels: Pixels) -> Features:
    return build_engine(build_encoder(config), config).submit(list(pixels))()


def exact_features(encoder: Encoder, pixels: Pixels) -> Features:
    """Of the network itself in float32, without an engine."""
    with torch.inference_mode():
        rows: Features = encoder.network(torch.tensor(pixels)).numpy()
    return rows


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_an_engine_gives_what_the_network_gives(config: ExtractConfig, engine: EngineName) -> None:
    pixels = make_pixels(4)
    found = run_engine(replace(config, engine=engine), pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact_features(build_encoder(config), pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_bf16_rows_are_all_but_those_of_fp32(config: ExtractConfig, engine: EngineName) -> None:
    pixels = make_pixels(4)
    found = run_engine(replace(config, engine=engine, precision="bf16"), pixels)
    exact = exact_features(build_encoder(config), pixels)
    cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosines.min() > 0.999


@needs_fast_int8
def test_int8_rows_are_like_those_of_fp32(config: ExtractConfig) -> None:
    config = replace(config, weights=str(SCENES_WEIGHTS_PATH))
    pixels = make_pixels(4)
    running = build_engine(build_encoder(config), replace(config, precision="int8"))
    assert running.description == "cpu openvino int8"
    found, exact = running.submit(list(pixels))(), exact_features(build_encoder(config), pixels)
    cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert 0.98 < cosines.min() < 0.99999
    np.testing.assert_array_equal(running.submit(list(pixels[2:3]))()[0], found[2])


@pytest.mark.parametrize("other", [{"engine": "torch"}, {"compile": True}])
def test_int8_is_computed_by_openvino_only(
    config: ExtractConfig, other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # a compiler, as far as `compile` asks for one
    with pytest.raises(InputError, match="`precision` int8 is computed on a CPU by openvino"):
        build_engine(build_encoder(config), replace(config, precision="int8", **other))


@pytest.mark.parametrize(("engine", "usual"), [("torch", 32), ("openvino", 8)])
def test_batches_are_of_the_engines_own_size_unless_one_is_set(
    config: ExtractConfig, engine: EngineName, usual: int
) -> None:
    config = replace(config, engine=engine, batch_size=None)
    running = build_engine(build_encoder(config), config)
    assert running.batch_size == usual
    assert running.submit(list(make_pixels(usual)))().shape == (usual, 2048)
    config = replace(config, batch_size=5)
    assert build_engine(build_encoder(config), config).batch_size == 5
    config = replace(config, batch_size=100_000)
    assert build_engine(build_encoder(config), config).batch_size == (256 if engine == "openvino" else 100_000)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_row_is_bit_for_bit_the_same_whatever_shares_its_batch(config: ExtractConfig, engine: EngineName) -> None:
    pixels = make_pixels(4)
    running = build_engine(build_encoder(config), replace(config, engine=engine))
    together = running.submit(list(pixels))()
    np.testing.assert_array_equal(running.submit(list(pixels[2:3]))()[0], together[2])
    np.testing.assert_array_equal(running.submit(list(pixels[::-1]))()[::-1], together)


def test_openvino_reads_images_however_they_lie_in_memory(config: ExtractConfig) -> None:
    """Several batches at once, each gone from here before it is read: whole images are not copied."""
    running = build_engine(build_encoder(config), replace(config, engine="openvino"))
    pixels = make_pixels(4)
    expected = running.submit(list(pixels))()
    layouts: list[Callable[[Pixels], Pixels]] = [
        np.asfortranarray,
        lambda image: image[:, ::-1].copy()[:, ::-1],
        lambda image: np.repeat(image, 2, axis=0)[::2],
        lambda image: np.asarray(Image.fromarray(image)),  # read-only, as Pillow returns it
        np.copy,
    ]
    waiting = [running.submit([lay(image) for image in pixels]) for _ in range(5) for lay in layouts]
    for rows in waiting:
        np.testing.assert_array_equal(rows(), expected)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_flip_is_the_mean_of_a_picture_and_its_mirror(config: ExtractConfig, engine: EngineName) -> None:
    config = replace(config, engine=engine)
    pixels = make_pixels(4)
    mirrored = np.ascontiguousarray(pixels[:, :, ::-1])
    both = run_engine(replace(config, views="flip"), pixels)
    np.testing.assert_allclose(both, (run_engine(config, pixels) + run_engine(config, mirrored)) / 2, rtol=1e-5)
    np.testing.assert_allclose(both, run_engine(replace(config, views="flip"), mirrored), rtol=1e-5)


def test_openvino_reads_images_in_their_own_memory(config: ExtractConfig) -> None:
    running = OpenVinoEngine(build_encoder(config), config)
    images = [np.asarray(Image.fromarray(image).resize((64, 64))) for image in make_pixels(4, side=80)]
    running.submit(images)()
    requests = [running._free.get() for _ in range(running._free.qsize())]
    read = [[request.get_input_tensor(number).data.ctypes.data for number in range(4)] for request in requests]
    assert [image.ctypes.data for image in images] in read


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_views_are_the_image_its_mirror_and_the_corners_of_a_larger_one(
    config: ExtractConfig, engine: EngineName
) -> None:
    config = replace(config, engine=engine, views="six")
    encoder, image = build_encoder(config), make_pixels(1, side=100)[0]
    prepared = encoder.prepare(image)
    assert prepared.shape == (5 * 64, 64, 3)
    larger = build_encoder(replace(config, views="one", image_size=72)).prepare(image)
    corners = [larger[:64, :64], larger[:64, 8:], larger[8:, :64], larger[8:, 8:]]
    whole = build_encoder(replace(config, views="one")).prepare(image)
    np.testing.assert_array_equal(prepared, np.concatenate([whole, *corners]))
    views = build_engine(encoder, config).submit([prepared, prepared])()
    expected = exact_features(encoder, np.stack([whole, whole[:, ::-1], *corners]))
    np.testing.assert_allclose(views.reshape(2, 6, 2048)[1], expected, rtol=1e-4, atol=1e-4)
    two = build_engine(build_encoder(replace(config, views="two")), config).submit([whole])()
    np.testing.assert_array_equal(two[0], views[0, : 2 * 2048])


@pytest.mark.parametrize("preprocess", ["squash", "crop", "whole"])
def test_corners_of_images_of_any_shape_are_as_large_as_the_image(
    config: ExtractConfig, preprocess: Preprocess
) -> None:
    config = replace(config, preprocess=preprocess, views="six")
    encoder, one = build_encoder(config), build_encoder(replace(config, views="one"))
    for width, height in ((100, 60), (60, 100), (64, 64), (900, 60), (9000, 90)):
        image = np.zeros((height, width, 3), np.uint8)
        rows, columns, _ = one.prepare(image).shape
        assert encoder.prepare(image).shape == (5 * rows, columns, 3)
        assert min(encoder.least_size(width, height)) > min(one.least_size(width, height))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_whole_pictures_of_many_shapes_get_the_rows_of_their_own_shape(
    config: ExtractConfig, engine: EngineName, tmp_path: Path
) -> None:
    config = replace(config, engine=engine, preprocess="whole", dtype="float32")
    (tmp_path / "photos").mkdir()
    sizes = [(100, 60), (60, 100), (64, 64), (100, 61), (900, 60), (120, 72)]
    for number, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height)).save(tmp_path / "photos" / f"{number}.png")
    summary = extract(tmp_path / "photos", tmp_path / "f.h5", config)
    assert (summary.extracted, summary.failures) == (6, ())
    store, encoder = FeatureStore.open(tmp_path / "f.h5"), build_encoder(config)
    shapes = set()
    for key in store.keys:
        pixels = encoder.prepare(np.asarray(Image.open(tmp_path / "photos" / key).convert("RGB")))
        shapes.add(pixels.shape)
        np.testing.assert_allclose(store[key], exact_features(encoder, pixels[None])[0], rtol=1e-3, atol=1e-3)
    assert shapes == {(64, 96, 3), (96, 64, 3), (64, 64, 3), (64, 256, 3)}


class ScarceEngine:
    """An engine on a device that holds a few pictures at most; a row is the picture's first three numbers."""

    description, depth = "scarce", 3

    def __init__(self, room: int, batch_size: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.room, self.batch_size, self.error = room, batch_size, error
        self.tried: list[int] = []

    def submit(self, images: Sequence[Pixels]) -> Callable[[], Features]:
        self.tried.append(self.batch_size)

        def wait() -> Features:
            if self.batch_size > self.room:
                raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
            return np.stack([image[0, 0] for image in images]).astype(np.float32)

        return wait


def encode(engine: Engine, pixels: Pixels, batch_size: int) -> Features:
    batches = [make_batch(pixels[start : start + batch_size]) for start in range(0, len(pixels), batch_size)]
    return np.concatenate([rows for _, rows in encode_batches(engine, batches)])


def cannot_create(*_: object) -> RuntimeError:
    return RuntimeError("could not create a primitive")  # oneDNN's words


def cannot_allocate(*_: object) -> RuntimeError:
    return RuntimeError(
        "Exception from cpu_memory.cpp:257:\nFailed to allocate 810549248 bytes of memory"
    )  # OpenVINO's


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError, cannot_create, cannot_allocate])
def test_out_of_memory_halves_the_batch_and_goes_on_in_order(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScarceEngine(room=3, batch_size=8, error=error)
    pixels = make_pixels(30, side=8)
    np.testing.assert_array_equal(encode(engine, pixels, 8), pixels[:, 0, 0, :])
    assert engine.batch_size == 2
    assert [record.getMessage() for record in caplog.records] == [
        "not enough memory: continuing with `batch_size` 4",
        "not enough memory: continuing with `batch_size` 2",
    ]


def test_a_picture_too_large_for_the_device_is_a_one_line_error() -> None:
    with pytest.raises(InputError, match="not enough memory for one image: use a smaller `image_size`"):
        encode(ScarceEngine(room=0, batch_size=4), make_pixels(4, side=8), 4)


def test_an_error_that_is_not_about_memory_is_not_swallowed() -> None:
    class Broken(ScarceEngine):
        def submit(self, images: Sequence[Pixels]) -> Callable[[], Features]:
            raise RuntimeError(f"the device fell off the bus with {len(images)} pictures")

    with pytest.raises(RuntimeError, match="fell off the bus"):
        encode(Broken(room=9, batch_size=4), make_pixels(4, side=8), 4)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_batch_halved_on_the_way_gives_the_same_rows(config: ExtractConfig, engine: EngineName) -> None:
    pixels = make_pixels(4)
    running = build_engine(build_encoder(config), replace(config, engine=engine))
    whole = running.submit(list(pixels))()
    running.batch_size = 2
    halves = np.concatenate([running.submit(list(pixels[:2]))(), running.submit(list(pixels[2:]))()])
    np.testing.assert_allclose(halves, whole, rtol=1e-4, atol=1e-5)


def test_the_engine_is_chosen_for_the_machine(
    config: ExtractConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import importlib.util

    encoder = build_encoder(config)
    assert build_engine(encoder, config).description == "cpu openvino float32"
    assert build_engine(encoder, replace(config, engine="torch")).description == "cpu torch float32"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert build_engine(encoder, config).description == "cpu torch float32"
    assert caplog.messages == ["openvino is not installed: torch runs the network, noticeably slower on a CPU"]
    with pytest.raises(InputError, match="`engine` openvino: the package is not installed"):
        build_engine(encoder, replace(config, engine="openvino"))


def test_openvino_is_refused_on_a_gpu(config: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder(config)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="`engine` openvino runs on the CPU"):
        build_engine(encoder, replace(config, engine="openvino", device="cuda"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_stored_rows_do_not_depend_on_the_engine_beyond_rounding(
    photos: Path, config: ExtractConfig, tmp_path: Path, precision: Precision
) -> None:
    engines: tuple[EngineName, ...] = ("torch", "openvino")
    stores = []
    for engine in engines:
        extract(photos, tmp_path / f"{engine}.h5", replace(config, engine=engine, precision=precision))
        stores.append(FeatureStore.open(tmp_path / f"{engine}.h5"))
    left, right = (store.read(range(len(store))).astype(np.float32) for store in stores)
    cosines = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    assert cosines.min() > 0.999
    assert stores[0].spec == stores[1].spec
