"""The encoder is torchvision's network with torchvision's preprocessing, whatever file its weights came from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet50
from torchvision.transforms import v2

from captionmill.data.errors import InputError, WeightsError
from captionmill.data.features.spec import FeatureSpec, Preprocess
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder, TorchSteps
from captionmill.stages.encoding.encoder import build_encoder, prepare_image
from captionmill.stages.encoding.engines.torch import TorchEngine
from captionmill.stages.encoding.network import feed_whole_numbers
from captionmill.stages.settings import ExtractConfig, Precision, TrainConfig


@pytest.fixture(scope="module")
def resnet50_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ResNet-50 with its classifier and with batch norms that do something."""
    torch.manual_seed(0)
    network = resnet50()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.empty(module.num_features).uniform_(-0.1, 0.1)
            module.running_var = torch.empty(module.num_features).uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("resnet") / "resnet50.pth"
    torch.save(network.state_dict(), path)
    return path


def make_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


SIZES = [(500, 375), (333, 500), (64, 48), (1000, 200), (224, 224), (257, 301), (2999, 1999), (9000, 90), (9, 2000)]


@pytest.fixture(scope="module")
def crop_spec(resnet50_path: Path) -> FeatureSpec:
    return build_encoder(ExtractConfig(weights=str(resnet50_path), preprocess="crop")).spec


@pytest.mark.parametrize("resize_size", [224, 256])
@pytest.mark.parametrize("size", SIZES)
def test_crop_is_the_torchvision_recipe(crop_spec: FeatureSpec, size: tuple[int, int], resize_size: int) -> None:
    image = make_image(*size)
    resized = v2.functional.resize(image, [resize_size], antialias=True)
    expected = np.asarray(v2.functional.center_crop(resized, [224, 224]))
    spec = replace(crop_spec, resize_size=resize_size)
    difference = np.abs(prepare_image(np.asarray(image), spec).astype(int) - expected)
    assert difference.max() <= 1  # Pillow rounds where the kept part lies, because only that is resized
    assert difference.mean() < 0.005  # levels


@pytest.mark.parametrize("size", [(256, 256), (301, 256), (256, 257), (3000, 256)])
def test_crop_of_a_picture_of_the_right_size_is_its_centre(crop_spec: FeatureSpec, size: tuple[int, int]) -> None:
    image = make_image(*size)
    expected = v2.functional.center_crop(image, [224, 224])
    np.testing.assert_array_equal(prepare_image(np.asarray(image), crop_spec), np.asarray(expected))


@pytest.mark.parametrize("size", SIZES)
def test_squash_is_pillows_resize(crop_spec: FeatureSpec, size: tuple[int, int]) -> None:
    image = make_image(*size)
    expected = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(prepare_image(np.asarray(image), replace(crop_spec, preprocess="squash")), expected)


@pytest.mark.parametrize(("preprocess", "width"), [("squash", 64), ("whole", 96)])
def test_a_picture_of_the_right_size_is_not_resized(thin_weights: Path, preprocess: Preprocess, width: int) -> None:
    """It would be copied, to no use."""
    config = ExtractConfig("scenes-resnet14", weights=str(thin_weights), preprocess=preprocess, image_size=64)
    image = np.asarray(make_image(width, 64))
    assert build_encoder(config).prepare(image) is image


def test_the_whole_image_is_kept_by_default(thin_weights: Path) -> None:
    default, squash = (
        build_encoder(ExtractConfig("scenes-resnet14", weights=str(thin_weights), preprocess=preprocess)).spec
        for preprocess in (None, "squash")
    )
    assert default == squash


def test_squash_keeps_the_whole_picture(thin_weights: Path) -> None:
    encoder = build_encoder(
        ExtractConfig("scenes-resnet14", weights=str(thin_weights), preprocess="squash", image_size=64)
    )
    image = Image.new("RGB", (300, 100), "white")
    image.paste((255, 0, 0), (0, 0, 10, 100))
    square = encoder.prepare(np.asarray(image))
    assert square.shape == (64, 64, 3)
    assert square[32, 0].tolist() == [255, 0, 0]
    assert square[32, 63].tolist() == [255, 255, 255]


def test_features_are_those_of_the_torchvision_network(resnet50_path: Path) -> None:
    network = resnet50()
    network.load_state_dict(torch.load(resnet50_path, weights_only=True))
    network.fc = nn.Identity()
    network.eval()
    config = ExtractConfig(weights=str(resnet50_path), device="cpu", precision="fp32", batch_size=2)
    encoder = build_encoder(config)
    images = [np.asarray(make_image(*size)) for size in ((300, 260), (99, 300))]
    pixels = np.stack([prepare_image(image, encoder.spec) for image in images])
    normalised = (
        torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    ) / (torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
    with torch.inference_mode():
        expected = network(normalised).numpy()
    found = TorchEngine(encoder, config).submit(list(pixels))()
    assert found.shape == (2, 2048)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_bf16_features_point_the_same_way(thin_weights: Path) -> None:
    config = ExtractConfig("scenes-resnet14", weights=str(thin_weights), preprocess="squash", image_size=64)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    exact = TorchEngine(build_encoder(config), replace(config, device="cpu", precision="fp32")).submit(list(pixels))()
    fast = TorchEngine(build_encoder(config), replace(config, device="cpu", precision="bf16")).submit(list(pixels))()
    cosine = (exact * fast).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(fast, axis=1)
    assert cosine.min() > 0.999


def test_float32_is_not_rounded_to_tf32_on_a_gpu(thin_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder(ExtractConfig("scenes-resnet14", weights=str(thin_weights), image_size=64, device="cpu"))
    decoder = Decoder(DecoderConfig.of(TrainConfig(embed_dim=4, hidden_dim=4), feature_dim=8, vocab_size=9))
    exact = ExtractConfig(precision="fp32", device="cpu")
    for build in (lambda: TorchEngine(encoder, exact), lambda: TorchSteps(decoder)):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
        TorchEngine(encoder, replace(exact, precision="bf16"))
        assert torch.backends.cudnn.allow_tf32
        build()
        assert not torch.backends.cudnn.allow_tf32


def test_a_network_that_gets_whole_numbers_computes_the_same_inside_its_padding(thin_weights: Path) -> None:
    config = ExtractConfig("scenes-resnet14", weights=str(thin_weights), preprocess="squash", image_size=64)
    network = build_encoder(config).network
    adapted = feed_whole_numbers(network)
    seen: list[torch.Tensor] = []
    for one in (network, adapted):
        one.layers[0].register_forward_hook(lambda _, inputs, output: seen.extend((*inputs, output)))
        with torch.inference_mode():
            one(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    normalised, exact, whole, found = seen
    assert not torch.equal(normalised, normalised.round())
    assert torch.equal(whole, whole.bfloat16().float())
    torch.testing.assert_close(found[:, :, 2:-2, 2:-2], exact[:, :, 2:-2, 2:-2], rtol=1e-3, atol=1e-4)


def test_the_same_weights_have_one_hash_in_every_wrapping(thin_weights: Path, tmp_path: Path) -> None:
    import safetensors.torch

    state = safetensors.torch.load_file(thin_weights)
    torch.save(state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, tmp_path / "a.pth")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "b.pth")
    paths = [thin_weights, tmp_path / "a.pth", tmp_path / "b.pth"]
    specs = [build_encoder(ExtractConfig("scenes-resnet14", weights=str(path))).spec for path in paths]
    assert len({spec.weights_sha256 for spec in specs}) == 1
    assert specs[0].differences(specs[1]) == []


def test_weights_of_another_network_are_refused(thin_weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"thin\.safetensors: not the weights of a resnet50") as error:
        build_encoder(ExtractConfig(weights=str(thin_weights)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no.pth", "no.safetensors"])
def test_a_damaged_weights_file_is_a_one_line_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"damaged beyond repair")
    with pytest.raises(WeightsError, match="not a readable state_dict") as error:
        build_encoder(ExtractConfig(weights=str(tmp_path / name)))
    assert "\n" not in str(error.value)


def test_a_pickle_that_could_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state": Path("x")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="loading it could run code"):
        build_encoder(ExtractConfig(weights=str(tmp_path / "evil.pth")))


def test_a_missing_weights_file_says_what_may_be_passed(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such file; `weights` takes imagenet1k_v1, imagenet1k_v2 or a \.pth"):
        build_encoder(ExtractConfig(weights=str(tmp_path / "gone.pth")))


def test_without_a_network_the_error_says_which_file_goes_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: unreachable at once
    with pytest.raises(WeightsError) as error:
        build_encoder(ExtractConfig())
    message = str(error.value)
    assert message.startswith("cannot download resnet50-0676ba61.pth")
    assert f"put it in {tmp_path / 'hub' / 'checkpoints'}, or pass a file as `weights`" in message
    assert "\n" not in message


def test_a_file_in_the_cache_folder_that_is_not_torchvisions_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resnet50_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth").write_bytes(resnet50_path.read_bytes())
    with pytest.raises(WeightsError, match=r"resnet50-0676ba61\.pth: damaged, or another file under this name"):
        build_encoder(ExtractConfig())


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [("cuda:99", "auto", "CUDA devices here"), ("toaster", "auto", "no such device"), ("cpu", "fp16", "needs a GPU")],
)
def test_a_device_that_is_not_here_is_an_error(
    thin_weights: Path, device: str, precision: Precision, message: str
) -> None:
    config = ExtractConfig("scenes-resnet14", weights=str(thin_weights), device=device, precision=precision)
    with pytest.raises(InputError, match=message):
        TorchEngine(build_encoder(config), config)
