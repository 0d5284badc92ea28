"""A converted network and the hash of its weights are kept, and the features are the same bit for bit."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from captionmill.data.errors import WeightsError
from captionmill.data.features.file import Features
from captionmill.data.images.decode import Pixels
from captionmill.stages.encoding.encoder import Encoder, build_encoder
from captionmill.stages.encoding.engine import build_engine
from captionmill.stages.settings import ExtractConfig, Precision

HOUR_NS = 3_600_000_000_000


@pytest.fixture
def config(thin_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExtractConfig:
    """With weights that have lain for an hour, and an empty cache."""
    monkeypatch.setenv("CAPTIONMILL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "thin.safetensors"
    path.write_bytes(thin_weights.read_bytes())
    age(path)
    return ExtractConfig(
        "scenes-resnet14", weights=str(path), image_size=32, batch_size=2, engine="openvino", device="cpu"
    )


def age(path: Path) -> None:
    modified_ns = path.stat().st_mtime_ns - HOUR_NS
    os.utime(path, ns=(modified_ns, modified_ns))


def pixels_of(count: int = 2, width: int = 32) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 32, width, 3), dtype=np.uint8)


def encode(config: ExtractConfig, pixels: Pixels) -> tuple[Encoder, Features]:
    encoder = build_encoder(config)
    return encoder, build_engine(encoder, config).submit(pixels)()


def was_built(encoder: Encoder) -> bool:
    """Whether the network was asked for, so that its weights were read."""
    return "network" in vars(encoder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("preprocess", ["squash", "whole"])
def test_a_kept_network_gives_the_same_bits_and_is_not_built(
    config: ExtractConfig, precision: Precision, preprocess: str
) -> None:
    config = ExtractConfig(**vars(config) | {"precision": precision, "preprocess": preprocess})
    pixels = pixels_of(width=64 if preprocess == "whole" else 32)
    first, fresh = encode(config, pixels)
    second, kept = encode(config, pixels)
    assert (was_built(first), was_built(second)) == (True, False)
    assert first.spec == second.spec
    np.testing.assert_array_equal(kept, fresh)


def test_a_damaged_network_is_made_again(config: ExtractConfig, tmp_path: Path) -> None:
    _, fresh = encode(config, pixels_of())
    (weights,) = (tmp_path / "cache" / "networks").glob("*/0.bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 64
    weights.write_bytes(content)
    encoder, features = encode(config, pixels_of())
    assert was_built(encoder)
    np.testing.assert_array_equal(features, fresh)
    assert not was_built(encode(config, pixels_of())[0])


def test_another_precision_or_size_is_another_network(config: ExtractConfig) -> None:
    encode(config, pixels_of())
    others = (replace(config, precision="bf16"), replace(config, image_size=64))
    assert [was_built(encode(other, pixels_of())[0]) for other in others[:1]] == [True]
    encoder = build_encoder(others[1])
    build_engine(encoder, others[1])
    assert was_built(encoder)


def test_changed_weights_have_their_own_hash_and_network(config: ExtractConfig, tmp_path: Path) -> None:
    path = Path(config.weights)
    first, fresh = encode(config, pixels_of())
    state = safetensors.torch.load_file(path)
    state["conv1.weight"] = state["conv1.weight"] + 1
    modified_ns = path.stat().st_mtime_ns
    safetensors.torch.save_file(state, path)
    os.utime(path, ns=(modified_ns, modified_ns))  # as a copy with its times
    second, changed = encode(config, pixels_of())
    assert was_built(second)
    assert second.spec.weights_sha256 != first.spec.weights_sha256
    assert not np.array_equal(changed, fresh)


def test_weights_that_change_before_they_are_read_are_refused(config: ExtractConfig, tmp_path: Path) -> None:
    path = Path(config.weights)
    build_encoder(config)
    encoder = build_encoder(config)
    state = safetensors.torch.load_file(path)
    state["conv1.weight"] = state["conv1.weight"] + 1
    safetensors.torch.save_file(state, path)
    with pytest.raises(WeightsError, match=r"thin\.safetensors: has changed while it was in use; run again"):
        build_engine(encoder, config)


def test_weights_just_written_are_hashed_each_time(config: ExtractConfig, tmp_path: Path) -> None:
    path = Path(config.weights)
    soon_ns = path.stat().st_mtime_ns + 2 * HOUR_NS
    os.utime(path, ns=(soon_ns, soon_ns))
    build_encoder(config)
    assert not (tmp_path / "cache").exists()
    age(path)
    age(path)
    build_encoder(config)
    assert len(list((tmp_path / "cache" / "weights").iterdir())) == 1
