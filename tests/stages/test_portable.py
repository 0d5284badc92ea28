"""Encoders and decoders as ONNX files compute what torch computes."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captionmill.data.errors import ExportError
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.ensemble import Ensemble
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.portable.file import Port, PortableNetwork, open_network, write_network
from captionmill.stages.portable.networks import portable_decoder, portable_encoder
from captionmill.stages.settings import ExtractConfig, FeatureScaling, ImageInput

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="captionmill[onnx] is not installed",
)


def build_decoder(
    image_input: ImageInput, layers: int, tie_weights: bool, feature_scaling: FeatureScaling = "standardize-unit"
) -> Decoder:
    torch.manual_seed(3)
    config = DecoderConfig(
        feature_dim=16, vocab_size=30, embed_dim=8, hidden_dim=12, dropout=0.5, feature_dropout=0.3, layers=layers
    )
    config = replace(config, image_input=image_input, tie_weights=tie_weights, feature_scaling=feature_scaling)
    decoder = Decoder(config)
    decoder.fit_features(torch.randn(16), torch.rand(16) + 0.5)
    return decoder


def require_same_steps(decoder: Decoder | Ensemble, folder: Path) -> None:
    """Start and three steps in the files give what `decoder` gives, at a batch size that no export checks."""
    start, step = portable_decoder(decoder)
    for network in (start, step):
        write_network(network, folder / network.name)
    open_start, open_step = (open_network(folder / name) for name in ("decoder_start", "decoder_step"))
    features, words = torch.randn(4, 16), torch.tensor([1, 7, 29, 4])
    with torch.inference_mode():
        state = decoder.start(features)
        exported = open_start(features.numpy())
        assert [part.shape for part in exported] == [
            tuple(4 if size == "batch" else size for size in port.shape) for port in start.outputs
        ]
        for _ in range(3):
            logits, state = decoder.step(words, state)
            found, *exported = open_step(words.numpy(), *exported)
            np.testing.assert_allclose(found, logits.numpy(), rtol=0, atol=1e-4)
            words = logits.argmax(1)
    for mine, torchs in zip(exported, state, strict=True):
        np.testing.assert_allclose(mine, torchs.numpy(), rtol=0, atol=1e-4)


@needs_onnx
def test_every_kind_of_decoder_becomes_onnx(tmp_path: Path) -> None:
    """Three at once, as an ensemble, in which each has its own state; the export of a whole model has one."""
    kinds: list[tuple[ImageInput, int, bool, FeatureScaling]] = [
        ("init", 3, False, "unit"),
        ("first", 1, False, "standardize"),
        ("every", 2, True, "standardize-unit"),
    ]
    require_same_steps(Ensemble([build_decoder(*kind) for kind in kinds]), tmp_path)


def test_an_ensemble_becomes_one_network_with_the_state_of_each_decoder() -> None:
    ensemble = Ensemble([build_decoder("init", 1, True), build_decoder("every", 2, False)])
    names = [port.name for port in portable_decoder(ensemble)[0].outputs]
    assert names == ["hidden_1", "cell_1", "hidden_2", "cell_2", "image_2"]


@needs_onnx
def test_an_encoder_takes_images_of_any_shape_and_both_views(thin_weights: Path, tmp_path: Path) -> None:
    """The exports of the whole model have `squash` and one view."""
    config = ExtractConfig("scenes-resnet14", str(thin_weights), "whole", 64, "flip")
    encoder = build_encoder(config)
    write_network(portable_encoder(encoder), tmp_path / "encoder")
    pixels = np.random.default_rng(0).integers(256, size=(4, 64, 160, 3)).astype(np.uint8)
    with torch.inference_mode():
        mirrored = encoder.network(torch.from_numpy(pixels[:, :, ::-1].copy()))
        expected = (encoder.network(torch.from_numpy(pixels)) + mirrored) / 2
    (features,) = open_network(tmp_path / "encoder")(pixels)
    np.testing.assert_allclose(features, expected.numpy(), rtol=0, atol=1e-4)


@needs_onnx
def test_a_network_that_computes_something_else_in_its_file_is_refused(tmp_path: Path) -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[int] = []

        def forward(self, numbers: Tensor) -> Tensor:
            self.calls.append(1)
            return numbers * len(self.calls)

    ports = [Port(name, "float32", ("batch", 2)) for name in ("numbers", "grown")]
    network = PortableNetwork("growing", Growing(), (ports[0],), (ports[1],), ({"batch": 2}, {"batch": 5}))
    with pytest.raises(ExportError, match="growing: the ONNX file computes other numbers than torch"):
        write_network(network, tmp_path / "growing")
