"""A converted network and the hash of its weights are kept, and the features are the same bit for bit."""

import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from builders import needs_fast_int8

from captionmill.data.errors import WeightsError
from captionmill.data.features.file import Features
from captionmill.stages.encoding.encoder import Encoder, build_encoder
from captionmill.stages.encoding.engine import build_engine
from captionmill.stages.encoding.network import FeatureNetwork
from captionmill.stages.settings import ExtractConfig, Precision

HOUR_NS = 3_600_000_000_000


class NetworkWantedError(Exception):
    """A network was asked for, so that its weights would be read."""


@pytest.fixture(scope="module")
def kept(thin_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExtractConfig, Path, Features]:
    """Weights that have lain for an hour, the cache after a first run with them, and its features."""
    folder = tmp_path_factory.mktemp("kept")
    path = folder / "thin.safetensors"
    path.write_bytes(thin_weights.read_bytes())
    age(path)
    machine = ExtractConfig(batch_size=2, engine="openvino", device="cpu", precision="fp32")
    config = replace(machine, backbone="scenes-resnet14", weights=str(path), image_size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPTIONMILL_CACHE", str(folder / "cache"))
        return config, folder / "cache", encode(build_encoder(config), config)


@pytest.fixture
def config(
    kept: tuple[ExtractConfig, Path, Features], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ExtractConfig:
    """That of the first run, with a copy of its cache."""
    shutil.copytree(kept[1], tmp_path / "cache")
    monkeypatch.setenv("CAPTIONMILL_CACHE", str(tmp_path / "cache"))
    return kept[0]


@pytest.fixture
def own_weights(config: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    """With a copy of the weights, which a test may change."""
    path = tmp_path / "own.safetensors"
    path.write_bytes(Path(config.weights).read_bytes())
    age(path)
    return replace(config, weights=str(path))


def age(path: Path) -> None:
    modified_ns = path.stat().st_mtime_ns - HOUR_NS
    os.utime(path, ns=(modified_ns, modified_ns))


def change(path: Path) -> None:
    state = safetensors.torch.load_file(path)
    state["conv1.weight"] = state["conv1.weight"] + 1
    safetensors.torch.save_file(state, path)


def encode(encoder: Encoder, config: ExtractConfig) -> Features:
    width = 64 if config.preprocess == "whole" else 32
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, width, 3), dtype=np.uint8)
    return build_engine(encoder, config).submit(list(pixels))()


def without_network(config: ExtractConfig) -> Encoder:
    """The encoder of `config`, which builds no network."""

    def refuse() -> FeatureNetwork:
        raise NetworkWantedError

    return replace(build_encoder(config), load=refuse)


def wants_network(config: ExtractConfig) -> bool:
    try:
        build_engine(without_network(config), config)
    except NetworkWantedError:
        return True
    return False


def test_a_kept_network_gives_the_same_bits_and_is_not_built(
    kept: tuple[ExtractConfig, Path, Features], config: ExtractConfig
) -> None:
    np.testing.assert_array_equal(encode(without_network(config), config), kept[2])


@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=needs_fast_int8)])
def test_a_kept_network_of_less_precision_gives_the_same_bits(config: ExtractConfig, precision: Precision) -> None:
    config = replace(config, precision=precision, preprocess="whole")
    fresh = encode(build_encoder(config), config)
    np.testing.assert_array_equal(encode(without_network(config), config), fresh)


def test_a_damaged_network_is_not_used(config: ExtractConfig, tmp_path: Path) -> None:
    (weights,) = (tmp_path / "cache" / "networks").glob("*/network.bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 64
    weights.write_bytes(content)
    assert wants_network(config)
    assert not weights.exists()


def test_a_network_that_fits_nowhere_is_a_named_error_and_leaves_nothing(config: ExtractConfig, tmp_path: Path) -> None:
    other = replace(config, image_size=64)
    encoder = build_encoder(other)
    before = sorted((tmp_path / "cache").rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="the converted network cannot be written; is the disk full"):
            build_engine(encoder, other)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_another_precision_size_or_preprocessing_is_another_network(
    config: ExtractConfig,
) -> None:
    others = (replace(config, precision="bf16"), replace(config, image_size=64), replace(config, preprocess="whole"))
    assert [wants_network(other) for other in (config, *others)] == [False, True, True, True]


def test_changed_weights_have_their_own_hash_and_network(own_weights: ExtractConfig) -> None:
    path = Path(own_weights.weights)
    first = build_encoder(own_weights)
    assert not wants_network(own_weights)  # the same weights in another file
    modified_ns = path.stat().st_mtime_ns
    change(path)
    os.utime(path, ns=(modified_ns, modified_ns))  # as a copy with its times
    assert build_encoder(own_weights).spec.weights_sha256 != first.spec.weights_sha256
    assert wants_network(own_weights)


def test_weights_that_change_before_they_are_read_are_refused(own_weights: ExtractConfig) -> None:
    config = replace(own_weights, image_size=64)
    build_encoder(config)
    encoder = build_encoder(config)
    change(Path(config.weights))
    with pytest.raises(WeightsError, match=r"own\.safetensors: has changed while it was in use; run again"):
        build_engine(encoder, config)


def test_weights_just_written_are_hashed_each_time(own_weights: ExtractConfig, tmp_path: Path) -> None:
    notes = tmp_path / "cache" / "weights"
    count = len(list(notes.iterdir()))
    path = Path(own_weights.weights)
    soon_ns = path.stat().st_mtime_ns + 2 * HOUR_NS
    os.utime(path, ns=(soon_ns, soon_ns))
    build_encoder(own_weights)
    assert len(list(notes.iterdir())) == count
    age(path)
    age(path)
    build_encoder(own_weights)
    assert len(list(notes.iterdir())) == count + 1
