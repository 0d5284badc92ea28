"""A torchvision ResNet without its classifier, with its own preprocessing: uint8 squares in, 2048 numbers out.

torchvision takes as long to be imported as torch does, so only what builds a network imports it: a process that
captions from stored features does not wait for it.
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from captionmill.data.errors import InputError, WeightsError
from captionmill.data.feature_spec import FeatureSpec
from captionmill.stages.config import Backbone, ExtractConfig, Preprocess, Views

if TYPE_CHECKING:
    from torchvision.models import ResNet

Pixels = npt.NDArray[np.uint8]

SCENES_BACKBONE = "scenes-resnet14"
SCENES_WEIGHTS = "drawn-scenes"
SCENES_WEIGHTS_PATH = Path(__file__).parents[2] / "data" / "assets" / "scenes_resnet14_thin.safetensors"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDE = 32  # pixels of the picture to one position of the last feature map
_RESIZED_LIMIT = 4_000_000  # pixels: a picture of 1 x 30,000 would become one of 256 x 7,680,000
_LONGEST_SHAPE = 4  # longer side to shorter side
_NAMED_WEIGHTS = ("imagenet1k_v1", "imagenet1k_v2")


@dataclass(frozen=True)
class Encoder:
    """A network in evaluation mode, what prepares an image for it, and the spec that names both."""

    network: "FeatureNetwork"
    spec: FeatureSpec

    def prepare(self, image: Image.Image) -> Pixels:
        """What the network sees of an RGB image, [H, W, 3]; H and W are the image size, except for "whole"."""
        return prepare_image(image, self.spec)

    def least_size(self, width: int, height: int) -> tuple[int, int]:
        """The size to which an image of (width, height) is resized, in pixels, before anything is cut off."""
        if self.spec.preprocess == "squash":
            return self.spec.image_size, self.spec.image_size
        if self.spec.preprocess == "whole":
            return _whole_size(width, height, self.spec.image_size)
        return _resized_size(width, height, self.spec.resize_size)


def prepare_image(image: Image.Image, spec: FeatureSpec) -> Pixels:
    """Resize (bilinear, antialiased) and crop as `spec` says: [H, W, 3] uint8.

    "crop" is torchvision's recipe: the shorter side to `resize_size`, the centre `image_size` square of that.
    "squash" makes the whole picture a square, whatever its shape. "whole" makes the shorter side `image_size` and the
    longer one what keeps the shape, to the nearest multiple of 32; at most 4 times as long: a longer panorama is
    squeezed.
    """
    size = spec.image_size
    width, height = image.size
    if spec.preprocess == "squash":
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    if spec.preprocess == "whole":
        return np.asarray(image.resize(_whole_size(width, height, size), Image.Resampling.BILINEAR))
    resized = _resized_size(width, height, spec.resize_size)
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    if resized[0] * resized[1] <= _RESIZED_LIMIT:
        whole = image.resize(resized, Image.Resampling.BILINEAR)
        return np.asarray(whole.crop((left, top, left + size, top + size)))
    # of a long panorama only what the crop keeps is resized: Pillow rounds the box, and pixels differ by a level
    scale_x, scale_y = width / resized[0], height / resized[1]
    box = (left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side made `shorter`; the longer truncated, as torchvision.transforms does."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _whole_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    ratio = min(max(width, height) / min(width, height), _LONGEST_SHAPE)
    longer = max(round(shorter * ratio / STRIDE) * STRIDE, shorter)
    return (longer, shorter) if width >= height else (shorter, longer)


def build_encoder(config: ExtractConfig, *, resize_size: int | None = None) -> Encoder:
    """The encoder that `config` names; named weights are downloaded once.

    `resize_size` is the length of the shorter side before the crop, where it is not to be that of the weights' recipe.

    Raises WeightsError if the weights cannot be had, cannot be read, or belong to another network.
    """
    if config.preprocess == "whole" and config.image_size % STRIDE:
        raise InputError(f"--image-size {config.image_size}: --preprocess whole needs a multiple of {STRIDE}")
    state, weights, resize_ratio = _read_weights(config)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    with torch.device("meta"):  # no memory and no random numbers for what the weights replace
        resnet = _build_resnet(config.backbone)
    try:
        resnet.load_state_dict(state, assign=True)
    except RuntimeError as exc:
        problem = " ".join(str(exc).split())[:200]
        raise WeightsError(f"{weights}: not the weights of a {config.backbone} ({problem})") from exc
    if resize_size is None:
        resize_size = round(config.image_size * (resize_ratio if config.preprocess == "crop" else 1))
    spec = FeatureSpec(
        backbone=config.backbone,
        weights=weights,
        weights_sha256=hash_weights(state),
        preprocess=config.preprocess,
        image_size=config.image_size,
        resize_size=resize_size,
        views=config.views,
    )
    return Encoder(FeatureNetwork(_fuse_batch_norm(resnet.eval())), spec)


def build_untrained_encoder(config: ExtractConfig) -> Encoder:
    """An encoder with random weights: as fast as the one that `config` names, and good for nothing else."""
    size = config.image_size
    spec = FeatureSpec(config.backbone, "random", "", config.preprocess, size, size, views=config.views)
    return Encoder(FeatureNetwork(_fuse_batch_norm(_build_resnet(config.backbone).eval())), spec)


def find_named_weights(backbone: str, weights: str) -> tuple[Path, str]:
    """Where torchvision's file of these weights lies on this machine, or will once downloaded; and its URL."""
    named = _named_weights(backbone, weights)
    return _path_of(named), named.url


def _named_weights(backbone: str, weights: str) -> Any:
    from torchvision.models import get_model_weights

    return get_model_weights(backbone)[weights.upper()]


def _path_of(named: Any) -> Path:
    name: str = named.url.rsplit("/", 1)[-1]
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def config_for_spec(spec: FeatureSpec, machine: ExtractConfig) -> ExtractConfig:
    """`machine` with the network and the preprocessing that `spec` names."""
    return replace(
        machine,
        backbone=cast(Backbone, spec.backbone),
        weights=spec.weights,
        preprocess=cast(Preprocess, spec.preprocess),
        image_size=spec.image_size,
        views=cast(Views, spec.views),
    )


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values: the same for .pth and .safetensors files of one network."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.endswith("num_batches_tracked"):  # a counter that evaluation ignores
            continue
        tensor = state[name].float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


class FeatureNetwork(nn.Module):
    """[B, H, W, 3] uint8 RGB -> [B, 2048] float32: normalisation, the ResNet, the mean over all positions.

    In two halves, because they differ in what they can bear: rounding the first convolution and the first of the four
    layers to bfloat16 costs more of the features' likeness to float32 than rounding the other three (ResNet-50, least
    cosine over 128 photographs: 0.9919 with everything in bfloat16, 0.9997 with the stem in float32).
    """

    def __init__(self, resnet: "ResNet") -> None:
        """The layers of `resnet`, its classifier left out."""
        super().__init__()
        self.stem = _Stem(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1)
        """[B, H, W, 3] uint8 -> [B, 256, H/4, W/4]."""
        self.trunk = _Trunk(resnet.layer2, resnet.layer3, resnet.layer4)
        """[B, 256, H/4, W/4] -> [B, 2048] float32."""

    def forward(self, pixels: Tensor) -> Tensor:
        """The features of a batch of pictures of one shape."""
        features: Tensor = self.trunk(self.stem(pixels))
        return features


class _Stem(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise as ImageNet's networks expect, in float32, whatever the layers' own precision is."""
        dtype = next(self.layers.parameters()).dtype
        normalised = (pixels.permute(0, 3, 1, 2).float() - self.mean.float()) / self.std.float()
        maps: Tensor = self.layers(normalised.to(dtype))
        return maps


class _Trunk(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        dtype = next(self.layers.parameters()).dtype
        features: Tensor = self.layers(maps.to(dtype)).float().mean((2, 3))
        return features


def _build_resnet(backbone: str) -> "ResNet":
    from torchvision.models import ResNet, get_model
    from torchvision.models.resnet import Bottleneck

    if backbone == SCENES_BACKBONE:
        resnet = ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=5)
    else:
        resnet = get_model(backbone, weights=None)
    resnet.fc = nn.Identity()
    return resnet


def _fuse_batch_norm(resnet: "ResNet") -> "ResNet":
    """Fold each batch norm into the convolution before it: the same function, about a fifth less work on a CPU."""
    from torchvision.models.resnet import Bottleneck

    resnet.conv1, resnet.bn1 = _fuse(resnet.conv1, resnet.bn1)
    for block in resnet.modules():
        if isinstance(block, Bottleneck):
            block.conv1, block.bn1 = _fuse(block.conv1, block.bn1)
            block.conv2, block.bn2 = _fuse(block.conv2, block.bn2)
            block.conv3, block.bn3 = _fuse(block.conv3, block.bn3)
            if block.downsample is not None:
                block.downsample = nn.Sequential(*_fuse(block.downsample[0], block.downsample[1]))
    return resnet


def _fuse(convolution: Any, batch_norm: Any) -> tuple[Any, Any]:
    return fuse_conv_bn_eval(convolution, batch_norm), nn.Identity()


def _read_weights(config: ExtractConfig) -> tuple[dict[str, Tensor], str, float]:
    """The tensors without the classifier, their name, and the ratio of resized shorter side to crop."""
    if config.backbone == SCENES_BACKBONE and config.weights in (*_NAMED_WEIGHTS, SCENES_WEIGHTS):
        state, weights, resize_ratio = _read_state(SCENES_WEIGHTS_PATH), SCENES_WEIGHTS, 1.0
    elif config.weights in _NAMED_WEIGHTS:
        named = _named_weights(config.backbone, config.weights)
        preset = named.transforms()
        state, weights = _download(named), config.weights
        resize_ratio = preset.resize_size[0] / preset.crop_size[0]
    else:
        path = Path(config.weights)
        if not path.is_file():
            raise WeightsError(
                f"{path}: no such file; --weights takes {', '.join(_NAMED_WEIGHTS)} or a .pth or .safetensors"
            )
        state, weights, resize_ratio = _read_state(path), str(path.resolve()), 256 / 224
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}, weights, resize_ratio


def _download(named: Any) -> dict[str, Tensor]:
    """The tensors of torchvision's file, from torch's cache folder or, once, the network; the name holds the hash."""
    path = _path_of(named)
    name = path.name
    hash_prefix = path.stem.rsplit("-", 1)[-1]
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(named.url, str(path), hash_prefix)
    except (URLError, OSError) as exc:
        raise WeightsError(
            f"cannot download {name} ({exc}); fetch {named.url} elsewhere and put it in {path.parent}, "
            "or pass --weights FILE"
        ) from exc
    except RuntimeError as exc:  # the hash of what came is wrong
        raise WeightsError(f"the download of {name} came damaged; run again") from exc
    with path.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(hash_prefix):
            raise WeightsError(f"{path}: damaged, or another file under this name; delete it and run again")
    return _read_state(path)


_Read = Callable[[Path], Mapping[str, Any]]


def _read_state(path: Path) -> dict[str, Tensor]:
    reader: _Read = safetensors.torch.load_file if path.suffix == ".safetensors" else _read_pickled_tensors
    try:
        loaded = reader(path)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, safetensors.SafetensorError) as exc:
        problem = str(exc).split("\n", 1)[0][:200]
        raise WeightsError(f"{path}: not a readable state_dict ({problem})") from exc
    for wrapper in ("state_dict", "model"):  # as training scripts save them
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    is_state = isinstance(loaded, dict) and loaded and all(isinstance(name, str) for name in loaded)
    if not is_state or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path}: holds no state_dict; save one with torch.save(network.state_dict(), PATH)")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def _read_pickled_tensors(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise ValueError("it holds more than tensors, and loading it could run code") from exc
