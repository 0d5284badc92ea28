"""A torchvision ResNet without its classifier, with its preprocessing: uint8 images in, 2048 numbers per image out.

A network is built when it is first asked for. Where nothing has to be encoded, or OpenVINO's form of the network is in
the cache, neither torchvision is imported nor are the weights read.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from captionmill.data.errors import InputError, WeightsError, one_line
from captionmill.data.features.spec import USUAL_PREPROCESS, FeatureSpec, Preprocess, Views
from captionmill.data.images.decode import Pixels
from captionmill.stages.encoding.weights import (
    WeightsFile,
    find_weights,
    hash_weights,
    known_hash,
    read_weights,
    remember_hash,
)
from captionmill.stages.settings import Backbone, ExtractConfig

if TYPE_CHECKING:
    from captionmill.stages.encoding.network import FeatureNetwork

_ENLARGED = 1.125  # of an image whose corners are cropped, so that a crop is 8/9 of each side
_LONGEST_SHAPE = 4  # longer side to shorter side
Size = tuple[int, int]
"""Width and height, pixels."""
CropBox = tuple[int, int, int, int]
"""Left, top, right and bottom, pixels."""
Resize = Callable[[Any, Size, CropBox], Pixels]
"""Resizes an image [H, W, 3] to a size, bilinear and antialiased, and returns the part of it that is in the box."""
STRIDE = 32  # pixels of the image per position of the network's last feature map


@dataclass(frozen=True)
class Encoder:
    """A network in evaluation mode, with its preprocessing, and the spec that names both."""

    spec: FeatureSpec
    load: Callable[[], "FeatureNetwork"] = field(compare=False)
    """Builds the network."""

    @cached_property
    def network(self) -> "FeatureNetwork":
        """The network; WeightsError if its weights cannot be read any more."""
        return self.load()

    def prepare(self, image: Pixels, resize: Resize | None = None) -> Pixels:
        """The network's inputs for an RGB image [H, W, 3]: `prepare_image`, and below it the crops of "six" views."""
        prepared = prepare_image(image, self.spec, resize)
        if self.crop_count == 1:
            return prepared
        height, width, _ = prepared.shape
        larger = prepare_image(image, _enlarged(self.spec), resize)
        corners = [
            larger[rows, columns]
            for rows in (np.s_[:height], np.s_[-height:])
            for columns in (np.s_[:width], np.s_[-width:])
        ]
        return np.concatenate([prepared, *corners])  # [5 H, W, 3]

    @property
    def crop_count(self) -> int:
        """Number of inputs that `prepare` returns, one below the other; mirror images are made of the first."""
        return 5 if self.spec.views == "six" else 1

    def least_size(self, width: int, height: int) -> Size:
        """The size to which an image of (width, height) is resized, in pixels, before the crop."""
        return _resized_size(width, height, self.spec if self.crop_count == 1 else _enlarged(self.spec))


def prepare_image(image: Pixels, spec: FeatureSpec, resize: Resize | None = None) -> Pixels:
    """Resize (bilinear, antialiased) and crop by `spec`: [H, W, 3] uint8, before and after.

    "crop" is torchvision's recipe: resize the shorter side to `resize_size`, then take the centre `image_size` square.
    "squash" makes the whole image a square, whatever its shape. "whole" resizes the shorter side to `image_size` and
    keeps the aspect ratio; the longer side is rounded to a multiple of 32 and at most 4 times as long, so a longer
    panorama is squeezed.

    Pillow resizes everywhere, as for torchvision: whole images to the same bits, in a millisecond for one of 500 x 375.
    A crop is resized without what is cut off, in three fifths of the time; none to 2 % of its levels then differ, by
    one, rarely by two. Faster libraries round so many levels differently that the features of some images move further
    than in bfloat16. `resize` is what resizes instead, an `image` of any type that has a shape.
    """
    height, width, _ = image.shape
    resized = _resized_size(width, height, spec)
    kept = (spec.image_size, spec.image_size) if spec.preprocess == "crop" else resized
    left, top = round((resized[0] - kept[0]) / 2), round((resized[1] - kept[1]) / 2)
    return (resize or _resize)(image, resized, (left, top, left + kept[0], top + kept[1]))


def _enlarged(spec: FeatureSpec) -> FeatureSpec:
    """`spec` with images an eighth larger, of which the corners are cropped."""
    return replace(spec, image_size=round(spec.image_size * _ENLARGED), resize_size=round(spec.resize_size * _ENLARGED))


def _resize(image: Pixels, size: Size, box: CropBox) -> Pixels:
    height, width, _ = image.shape
    left, top, right, bottom = box
    if (width, height) == size:
        return image if box == (0, 0, *size) else image[top:bottom, left:right].copy()
    upper, lower = top * height / size[1], bottom * height / size[1]
    # without the rows that are cut off, which Pillow would copy; it also chooses by the height which axis comes first
    margin = ceil(max(height / size[1], 1)) + 1
    first, last = max(int(upper) - margin, 0), int(lower) + 1 + margin
    source = left * width / size[0], upper - first, right * width / size[0], lower - first
    kept = right - left, bottom - top
    return np.asarray(Image.fromarray(image[first:last]).resize(kept, Image.Resampling.BILINEAR, box=source))


def _resized_size(width: int, height: int, spec: FeatureSpec) -> Size:
    """The (width, height) that an image of `width` x `height` is resized to by `spec`, before the crop."""
    shorter = spec.resize_size if spec.preprocess == "crop" else spec.image_size
    if spec.preprocess == "squash":
        return shorter, shorter
    if spec.preprocess == "crop":  # truncated, as in torchvision.transforms
        longer = int(shorter * max(width, height) / min(width, height))
    else:
        ratio = min(max(width, height) / min(width, height), _LONGEST_SHAPE)
        longer = max(round(shorter * ratio / STRIDE) * STRIDE, shorter)
    return (longer, shorter) if width >= height else (shorter, longer)


def build_encoder(config: ExtractConfig, *, resize_size: int | None = None) -> Encoder:
    """The encoder that `config` names; named weights are downloaded once.

    `resize_size` is the length of the shorter side before the crop, if it is not that of the weights' recipe.

    Raises WeightsError if the weights are unavailable, cannot be read, or belong to another network.
    """
    preprocess = config.preprocess or USUAL_PREPROCESS
    if preprocess == "whole" and config.image_size % STRIDE:
        raise InputError(f"`image_size` {config.image_size}: `preprocess` whole needs a multiple of {STRIDE}")
    file = find_weights(config)
    digest = known_hash(file, config.backbone)
    if digest is None:
        note_key = file.note_key(config.backbone)
        network, digest = _build_network(config.backbone, file)
        remember_hash(note_key, file, config.backbone, digest)
        load = partial(_already_built, network)
    else:
        load = partial(_load_network, config.backbone, file, digest)
    if resize_size is None:
        resize_size = round(config.image_size * (file.resize_ratio if preprocess == "crop" else 1))
    spec = FeatureSpec(
        backbone=config.backbone,
        weights=file.name,
        weights_sha256=digest,
        preprocess=preprocess,
        image_size=config.image_size,
        resize_size=resize_size,
        views=config.views,
    )
    return Encoder(spec, load)


def _already_built(network: "FeatureNetwork") -> "FeatureNetwork":
    return network


def _load_network(backbone: str, file: WeightsFile, digest: str) -> "FeatureNetwork":
    """The network of weights whose hash is known from an earlier run; WeightsError if they have another one."""
    network, found = _build_network(backbone, file)
    if found != digest:
        raise WeightsError(f"{file.path}: has changed while it was in use; run again")
    return network


def _build_network(backbone: str, file: WeightsFile) -> "tuple[FeatureNetwork, str]":
    """The network `backbone` with the weights in `file`, and their hash; WeightsError if they do not fit."""
    import torch

    from captionmill.stages.encoding.network import FeatureNetwork, build_resnet, fuse_batch_norm

    read = read_weights(file)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in read.items()}
    digest = hash_weights(state)
    with torch.device("meta"):  # no memory and no random numbers for tensors that are replaced
        resnet = build_resnet(backbone)
    try:
        resnet.load_state_dict(state, assign=True)
    except RuntimeError as exc:
        raise WeightsError(f"{file.name}: not the weights of a {backbone} ({one_line(exc)})") from exc
    return FeatureNetwork(fuse_batch_norm(resnet.eval())), digest


def build_untrained_encoder(config: ExtractConfig) -> Encoder:
    """An encoder with random weights, only for measuring the speed of the one that `config` names."""
    size = config.image_size
    preprocess = config.preprocess or USUAL_PREPROCESS
    spec = FeatureSpec(config.backbone, "random", "", preprocess, size, size, views=config.views)
    return Encoder(spec, partial(_build_untrained, config.backbone))


def _build_untrained(backbone: str) -> "FeatureNetwork":
    from captionmill.stages.encoding.network import FeatureNetwork, build_resnet, fuse_batch_norm

    return FeatureNetwork(fuse_batch_norm(build_resnet(backbone).eval()))


def encoder_for_spec(spec: FeatureSpec, machine: ExtractConfig, weights: Path | None) -> Encoder:
    """The encoder that makes features of `spec`, its weights read from `weights` if given.

    Raises WeightsError or SpecMismatchError if its weights are not available.
    """
    config = config_for_spec(spec, machine)
    if weights:
        config = replace(config, weights=str(weights))
    try:
        encoder = build_encoder(config, resize_size=spec.resize_size)
    except WeightsError as exc:
        raise WeightsError(
            f"{exc}; the model's features were made with {spec.weights}: pass that file as `weights`"
        ) from exc
    spec.require(encoder.spec, mine="the model", others=config.weights)
    return encoder


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
